"""Time and memory of choosing the weights to prune on Swin-B: DIMAP, one torch.sort, and Torch-Pruning.

    python benchmarks/prune_scoring.py            # Swin-B, medians of 5 interleaved repeats
    python benchmarks/prune_scoring.py --quick    # Swin-T, 1 repeat

DIMAP's row is the whole of `prune_weights`: module rules, finite check, scores, selection at 0.55, masks of 84 M
single weights; it runs on one thread whatever `--threads` says. `torch.sort` sorts the same weights once, as one
vector. Torch-Pruning scores whole channel groups of the same model, which is another task (far fewer scores, no
selection); its graph is traced beforehand.
Peak memory is what the process grew by during the run (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from compress.core.progress import say, track
from compress.prune.modules import assign_modules
from compress.prune.weights import WeightsConfig, prune_weights


def main() -> None:
    """Run all contestants in turn, several times, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Swin-T and one repeat")
    parser.add_argument("--repeats", type=int, help="interleaved repeats (default 5, with --quick 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    name = f"swin_{'tiny' if arguments.quick else 'base'}_patch4_window7_224"
    model = timm.create_model(name).eval()
    weights = [model.get_parameter(weight.name).detach() for weight in assign_modules(model).weights]
    flat = torch.cat([weight.flatten() for weight in weights])
    say(f"tracing {name} for Torch-Pruning")
    groups, lamp, magnitude = _torch_pruning(model)
    config = WeightsConfig(sparsity=0.55)
    contestants: dict[str, Callable[[], object]] = {
        "torch.sort of the same weights, once": lambda: torch.sort(flat),
        "DIMAP 0.55, masks of single weights (ours)": lambda: prune_weights(model, config),
        f"Torch-Pruning LAMPImportance, {len(groups)} channel groups": lambda: [lamp(group) for group in groups],
        f"Torch-Pruning GroupMagnitudeImportance, {len(groups)} channel groups": lambda: [
            magnitude(group) for group in groups
        ],
    }
    repeats = arguments.repeats or (1 if arguments.quick else 5)
    results: dict[str, list[tuple[float, float | None]]] = {label: [] for label in contestants}
    for _ in track(range(repeats), "timing"):
        for label, run in contestants.items():
            results[label].append(_measure(run))
    _print(f"{name}: {flat.numel():,} weights, {arguments.threads} threads, median of {repeats}", results)


def _torch_pruning(model: nn.Module) -> tuple[list[Any], Any, Any]:
    """Return Torch-Pruning's channel groups of the model and its two criteria."""
    import torch_pruning as tp

    tables = [(parameter, 0) for name, parameter in model.named_parameters() if "relative_position" in name]
    graph = tp.DependencyGraph().build_dependency(
        model, torch.randn(1, 3, 224, 224), unwrapped_parameters=tables, verbose=False
    )
    groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    return groups, tp.importance.LAMPImportance(), tp.importance.GroupMagnitudeImportance()


def _measure(run: Callable[[], object]) -> tuple[float, float | None]:
    """Return seconds and the growth of the process in MB while `run` runs (None where it cannot be read)."""
    before = _reset_peak()
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    peak = None if before is None else _status("VmHWM") - before
    del result
    return seconds, peak


def _reset_peak() -> float | None:
    """Give freed memory back, forget the peak so far and return the memory in use, in MB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(key: str) -> float:
    """Return a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def _print(title: str, results: dict[str, list[tuple[float, float | None]]]) -> None:
    table = Table(title=title)
    for column in ("what", "time, s", "peak memory, MB", "time / torch.sort"):
        table.add_column(column, justify="left" if column == "what" else "right")
    sort, *_ = results.values()
    for label, runs in results.items():
        ratios = [seconds / reference for (seconds, _), (reference, _) in zip(runs, sort, strict=True)]
        peaks = [peak for _, peak in runs if peak is not None]
        memory = f"{statistics.median(peaks):.0f}" if peaks else "-"
        seconds = statistics.median(seconds for seconds, _ in runs)
        table.add_row(label, f"{seconds:.3f}", memory, f"{statistics.median(ratios):.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
