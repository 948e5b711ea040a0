"""Run directories as a finished run leaves them: a long Swin pruned by structure, a short one pruned by masks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def _latency(samples: np.ndarray, contended: bool) -> dict[str, Any]:
    p10, p50, p90, p99 = (round(float(v), 4) for v in np.percentile(samples, (10, 50, 90, 99)))
    return {
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "min": float(samples.min()),
        "cpu_p50": p50 * 0.97,
        "runs": len(samples),
        "threads": 1,
        "batch": 1,
        "provider": "CPUExecutionProvider",
        "contended": contended,
    }


def _samples(centre: float, seed: int, runs: int = 320) -> np.ndarray:
    random = np.random.default_rng(seed)
    times = centre * (1 + random.gamma(2.0, 0.012, runs))
    times[random.choice(runs, 3)] *= 2.3
    return times


def _epochs(number: int, stage: str, epochs: int, loss: float, top1: float) -> list[dict[str, Any]]:
    events = []
    for epoch in range(1, epochs + 1):
        rest = float(np.exp(-3.5 * epoch / epochs))
        event = {"event": "epoch", "stage": stage, "number": number, "epoch": epoch, "loss": loss * rest + 0.05}
        events.append({**event, "test_loss": loss * rest * 0.9 + 0.12, "top1": top1 - 60 * rest})
    return events


def _long_layers() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    layers = []
    for stage, (depth, dim) in enumerate(zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True)):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            heads = dim // 32
            kept = int(random.integers(heads // 2, heads + 1))
            layers.append(
                {"name": f"{name}.attn", "kind": "heads", "before": heads, "after": kept, "stage": str(stage)}
            )
            hidden = 4 * dim
            width = int(random.integers(hidden // 64, hidden // 16 + 1)) * 16
            layers.append(
                {"name": f"{name}.mlp.fc1", "kind": "mlp", "before": hidden, "after": width, "stage": str(stage)}
            )
        if stage < 3:
            layers.append(
                {
                    "name": f"layers.{stage + 1}.downsample.reduction",
                    "kind": "channels",
                    "before": 2 * dim,
                    "after": 2 * dim,
                    "stage": str(stage),
                }
            )
    for index in range(9):
        layers.append(
            {
                "name": f"neck.lateral_convolutions.{index}.depthwise_separable.pointwise",
                "kind": "channels",
                "before": 256,
                "after": 176,
                "stage": "neck",
            }
        )
    return layers


RECIPE = """version: 1
name: {name}
seed: 0
model:
  source: timm
  name: {model}
  checkpoint: null
prune:
  kind: structure
  criterion: dimap
  budget: {{macs: 0.5}}
"""

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.15.0",
    "onnxruntime": "1.32.0",
    "cpu": "Intel(R) Xeon(R) Platinum 8481C",
    "cores": 2,
    "load": float("inf"),
    "gpu": None,
    "cpu_flags": ["avx2", "avx512f", "avx512_vnni"],
}


def make_long_run(path: Path) -> Path:
    """Write a run of 60 layers with every file a run can have."""
    slow, fast = _samples(58.0, 0), _samples(37.4, 1)
    before = {"top1": 83.474, "top5": 96.53, "loss": 0.7411, "params": 87768224, "nonzero_params": 87768224}
    before |= {"macs": 15467000000, "nonzero_macs": 15467000000, "onnx_bytes": 351882123, "onnx_parity_max_rel": 8.1e-7}
    after = {"top1": 83.262, "top5": 96.41, "loss": 0.7583, "params": 41933184, "nonzero_params": 41933184}
    after |= {"macs": 7402000000, "nonzero_macs": 7402000000, "onnx_bytes": 168311902, "onnx_parity_max_rel": 9.7e-7}
    report = {
        "schema": 1,
        "name": "dimap_swin",
        "recipe_sha256": "9f2c" * 16,
        "seed": 0,
        "environment": ENVIRONMENT,
        "stages": [
            {"name": "dense", "seconds": 41.2, "metrics": {"top1": 83.474, "params": 87768224, "macs": 15467000000}},
            {"name": "prune", "seconds": 128.0, "metrics": {"top1": 12.1, "params": 41933184, "macs": 7402000000}},
            {"name": "finetune", "seconds": 5403.0, "metrics": {"top1": 83.262, "params": 41933184}},
            {"name": "export", "seconds": 31.0, "metrics": {"onnx_bytes": 168311902}},
            {"name": "latency", "seconds": 44.0, "metrics": None},
        ],
        "baseline": {**before, "latency_ms": _latency(slow, False)},
        "final": {**after, "latency_ms": _latency(fast, True)},
        "latency_ratio": {"median": 1.5512, "ci95": [1.512, 1.602], "blocks": 32},
        "efficiency": 0.7424,
    }
    by_stage = ((0.41e6, 0.53e6), (1.1e6, 1.9e6), (30.2e6, 57.4e6), (9.9e6, 27.1e6))
    by_module = {"attention in": (14e6, 29e6), "attention out": (6.1e6, 9.6e6), "mlp": (18e6, 57e6)}
    stream = "its output is the residual stream"
    details = {
        "layers": _long_layers(),
        "stages": [{"name": f"stage {i}", "kept": kept, "total": total} for i, (kept, total) in enumerate(by_stage)],
        "modules": [{"name": name, "kept": kept, "total": total} for name, (kept, total) in by_module.items()],
        "skipped": [
            *({"layer": f"layers.{stage}.downsample.reduction", "reason": stream} for stage in (1, 2, 3)),
            {"layer": "patch_embed.proj", "reason": "feeds <script>alert('x')</script> & the residual stream"},
            {"layer": "head.fc", "reason": "the classifier keeps its classes"},
        ],
        "blocks_removed": ["layers.2.blocks.11", "layers.2.blocks.16"],
        "align": 16,
        "predicted": {"macs": [15467000000, 7395000000], "params": [87768224, 41933184]},
        "notes": ["3 layers fell back to multiples of 8, since 16 would have missed the budget."],
    }
    events = [{"event": "start"}, *_epochs(1, "dense", 30, 2.2, 83.5), *_epochs(3, "finetune", 12, 0.9, 83.3)]
    _write(path / "report.json", report)
    _write(path / "recipe.yaml", RECIPE.format(name="dimap_swin", model="swin_base_patch4_window7_224"))
    _write(path / "stages/02-prune/details.json", details)
    _write(path / "stages/05-latency/samples.json", {"baseline_ms": slow.tolist(), "final_ms": fast.tolist()})
    _write(path / "log.jsonl", "\n".join(map(json.dumps, events)) + '\n{"event": "epo')
    return path


def make_short_run(path: Path) -> Path:
    """Write a run of a small net pruned by masks, without data: no accuracy, no samples, no log."""
    slow, fast = _samples(1.912, 0), _samples(1.905, 1)
    size = {"params": 855770, "macs": 126900000, "onnx_bytes": 3441200, "top1": None, "loss": None}
    report = {
        "schema": 1,
        "name": "resnet56_masks",
        "stages": [{"name": "prune", "seconds": 1.4, "metrics": {}}],
        "baseline": {
            **size,
            "nonzero_params": 855770,
            "nonzero_macs": 126900000,
            "latency_ms": _latency(slow, False),
        },
        "final": {**size, "nonzero_params": 385096, "nonzero_macs": 60100000, "latency_ms": _latency(fast, False)},
        "latency_ratio": {"median": 1.003, "ci95": [0.991, 1.012], "blocks": 30},
        "efficiency": 1.003,
    }
    modules = [{"name": f"layer{i}", "kept": kept, "total": 10000} for i, kept in ((1, 9100), (2, 6200), (3, 3300))]
    _write(path / "report.json", report)
    _write(path / "stages/01-prune/details.json", {"modules": modules})
    return path


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    return make_long_run(tmp_path / "dimap_swin")


@pytest.fixture
def short_run(tmp_path: Path) -> Path:
    return make_short_run(tmp_path / "resnet56_masks")


@pytest.fixture
def change() -> Callable[..., None]:
    """Return a function that sets `dotted.key=value` (dots as double underscores) in a run's report.json."""

    def apply(run: Path, **values: Any) -> None:
        report = json.loads((run / "report.json").read_text())
        for key, value in values.items():
            *parents, last = key.split("__")
            target = report
            for parent in parents:
                target = target[parent]
            target[last] = value
        _write(run / "report.json", report)

    return apply
