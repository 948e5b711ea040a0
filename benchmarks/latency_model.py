"""How well a latency model foretells networks that it was not fitted to: random widths and dropped blocks.

    python benchmarks/latency_model.py [--models resnet56 mobilenetv2 swin_t convnext] [--held 20] [--csv FILE]

For each model, the narrowed copies that its latency model is made of and further random ones are timed in one session
(`compress.latency_model`), so that what is judged is the model, not a machine that became slower meanwhile. A row tells
the error on the further ones, their rank correlation, and what making the model took: its share of that session by the
number of files, and CPU time of the same. Below, the staircase of ResNet-56: whether 20 to 32 channels take the same
in stages 2 and 3, and a step is below.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from compress.bundle import open_model
from compress.core.text_table import text_table
from compress.latency_model.build import COUNT, explained
from compress.latency_model.grid import Network, candidate_widths, networks
from compress.latency_model.model import LatencyModel
from compress.latency_model.survey import Surveyor
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.width_multiple import width_multiple
from spaces.zoo import ModelConfig

MODELS = {
    "resnet56": ("builtin", "cifar_resnet56"),
    "mobilenetv2": ("timm", "mobilenetv2_100"),
    "swin_t": ("timm", "swin_tiny_patch4_window7_224"),
    "convnext": ("timm", "convnext_atto"),
}
TITLES = ("model", "ms", "groups", "blocks", "median", "mean", "max", "rank", "build s", "CPU s", "load")
STAIRS = (16, 20, 32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--held", type=int, default=20, help="networks that the model is judged by")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    rows = _kept(arguments.csv)
    for name in arguments.models:
        rows[name] = row(name, arguments.held)
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([TITLES, *rows.values()])
        print(text_table(TITLES, [rows[name]]), flush=True)
    print(text_table(TITLES, list(rows.values())))


def _kept(file: Path) -> dict[str, list[str]]:
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as opened:
        return {row[0]: row for row in list(csv.reader(opened))[1:]}


def row(name: str, held: int) -> list[str]:
    """Return the figures of one model."""
    source, model_name = MODELS[name]
    bundle = open_model(ModelConfig(source=source, name=model_name), None).bundle
    inputs, latency = bundle.example_inputs(), LatencyConfig()
    graph = bundle.known.graph(bundle.model, inputs)
    began, cpu = time.perf_counter(), _cpu_seconds()
    widths = candidate_widths(graph, width_multiple(latency.target).value)
    drawn = networks(graph, widths, COUNT, seed=0)
    others = networks(graph, widths, held + 1, seed=1)[1 : held + 1]
    stairs = _stairs(name)
    surveyor = Surveyor(bundle.model, graph, inputs, latency, None)
    survey = surveyor.measure([*drawn, *others, *stairs])
    timed = survey.networks
    model = explained(surveyor, widths, drawn, survey.model_copy(update={"networks": timed[: len(drawn)]}))
    share = len(drawn) / len(timed)
    seconds, cpu = share * (time.perf_counter() - began), share * (_cpu_seconds() - cpu)
    truth = np.array([each.ms for each in timed[len(drawn) : len(drawn) + held]])
    foretold = np.array([model.ms(each.widths, each.dropped) for each in others])
    off = np.abs(foretold / truth - 1)
    for network, told, ms in zip(others, foretold, truth, strict=True):
        print(f"{name}  foretold {told:.3f}  measured {ms:.3f}  {len(network.dropped)} blocks dropped")
    if stairs:
        _check_stairs(model, [each.ms for each in timed[-len(stairs) :]])
    return [
        name, f"{timed[0].ms:.3f}", str(len(graph.groups)), str(len(graph.blocks)),
        f"{np.median(off):.1%}", f"{off.mean():.1%}", f"{off.max():.1%}", f"{spearmanr(foretold, truth).statistic:.3f}",
        f"{seconds:.0f}", f"{cpu:.0f}", f"{os.getloadavg()[1]:.1f}",
    ]  # fmt: skip


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _stairs(name: str) -> list[Network]:
    """Return networks that are the same but for the inner widths of one stage: 16, 20, 32 in stages 2 and 3."""
    if name != "resnet56":
        return []
    return [
        Network({f"layer{stage}.{block}.conv1:channels": width for block in range(1, 9)})
        for stage in (2, 3)
        for width in STAIRS
    ]


def _check_stairs(model: LatencyModel, times: list[float]) -> None:
    """Print by how much the inner widths of a stage's blocks change what the blocks take."""
    blocks = {stage: [f"layer{stage}.{block}" for block in range(1, 9)] for stage in (2, 3)}
    for stage, three in zip((2, 3), np.reshape(times, (2, 3)), strict=True):
        rest = model.ms(dropped=blocks[stage])
        at16, at20, at32 = three - rest
        flat, step = at20 / at32 - 1, at20 / at16 - 1
        verdict = "as on AVX-512" if abs(flat) <= 0.15 and step >= 0.4 else "not the staircase of AVX-512"
        print(f"stage {stage}: 20 channels take {flat:+.0%} more than 32, and {step:+.0%} more than 16: {verdict}")


if __name__ == "__main__":
    main()
