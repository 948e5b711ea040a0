"""What a pruning to latencies leaves: details, and with several budgets the folder `front` with a model for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compress.bundle import Bundle
from compress.core.atomic import write_json
from compress.core.environment import on_device
from compress.core.errors import CompressError
from compress.core.progress import say
from compress.export.exporters import ExportConfig
from compress.export.exporters import export as export_onnx
from compress.graph.plan import Plan
from compress.prune.allocation.meet import TOLERANCE, Met
from compress.prune.kinds import Details, Surroundings
from compress.prune.structure_config import StructureConfig
from evaluators.tasks.evaluation import evaluate

FOLDER, INDEX = "front", "index.json"


def written(
    fitted: Sequence[tuple[Met, Plan]],
    cut: Callable[[Plan], tuple[Bundle, Details]],
    config: StructureConfig,
    around: Surroundings,
) -> tuple[Bundle, Details]:
    """Return the bundle of the last budget and the details; several budgets are all evaluated and written as files.

    Args:
        fitted: for each budget what was measured, and the plan.
        cut: makes the small bundle of a plan, and its details.
        config: with the budgets.
        around: where the stage's directory is.
    """
    folder = None if around.directory is None or config.budgets is None else around.directory / FOLDER
    rows: list[dict[str, Any]] = []
    export = around.export
    for met, plan in fitted:
        bundle, details = cut(plan)
        row = row_of(met, plan)
        if config.budgets is not None:
            row["metrics"] = _metrics(bundle, around)
            say(f"{met.budget}: {_figures(row)}")
        if folder is not None:
            files, exporter = _files(bundle, folder, f"{met.budget.kind}-{met.budget.target:g}", export, around.export)
            row |= files
            export = export.model_copy(update={"exporter": exporter})  # auto is settled by the first of them
        rows.append(row)
    if folder is not None:
        write_json(folder / INDEX, rows)
    notes = [*details["notes"], *map(sentence, rows)]
    if around.data is None or around.data.train is None:
        notes.append("There is no data: what a choice loses was told by the criterion's scores, not measured.")
    return bundle, details | {"latencies": rows, "notes": notes}


def row_of(met: Met, plan: Plan) -> dict[str, Any]:
    """Return what is known of the plan for one budget, as plain values; latency is a share of the dense model's."""
    timing = met.timing
    return {
        "budget": {met.budget.kind: met.budget.target},
        "latency": round(timing.share, 4),
        "ci95": [round(timing.low, 4), round(timing.high, 4)],
        "latency_ms": round(timing.ms, 4),
        "dense_ms": round(timing.dense_ms, 4),
        "contended": timing.contended,
        "by_cpu": timing.by_cpu,
        "predicted": round(met.predicted_share, 4),
        "loss": met.allocation.loss,
        "macs": list(plan.macs),
        "params": list(plan.params),
        "blocks_removed": list(plan.dropped),
    }


def sentence(row: Mapping[str, Any]) -> str:
    """Return what was reached for one budget."""
    of = " of CPU time" if row.get("by_cpu") else ""
    rest = "; the machine was busy with other work meanwhile" if row["contended"] else ""
    ((kind, value),) = row["budget"].items()
    off = row["latency"] / (value if kind == "latency" else value / row["dense_ms"]) - 1
    if abs(off) > TOLERANCE:
        rest = f"; that is {abs(off):.0%} {'more' if off > 0 else 'less'} than was asked{rest}"
    return (
        f"budget {kind}: {value:g}: {row['latency']:.3f} of the dense latency was measured "
        f"[{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}] ({row['latency_ms']:.3g} of {row['dense_ms']:.3g} ms{of}), with "
        f"{row['macs'][1] / row['macs'][0]:.3f} of the MACs and {_gone(len(row['blocks_removed']))}{rest}"
    )


def _gone(blocks: int) -> str:
    return f"without {blocks} block{'s' * (blocks != 1)}" if blocks else "all blocks"


def _figures(row: Mapping[str, Any]) -> str:
    figures = [f"{name} {value:.4g}" for name, value in row["metrics"].items() if isinstance(value, float)]
    return ", ".join([f"{row['latency']:.3f} of the latency", *figures])


def _metrics(bundle: Bundle, around: Surroundings) -> dict[str, Any]:
    """Return the task's metrics on the test data (null without), and the cost."""
    found: dict[str, Any] = {metric.name: None for metric in bundle.task.metrics}
    if around.data is not None and around.data.test is not None:
        with on_device(bundle.model, around.device):
            found |= evaluate(bundle.model, around.data.test, around.data.task, around.device)
    return found | bundle.costs()


def _files(
    bundle: Bundle, folder: Path, name: str, export: ExportConfig, asked: ExportConfig
) -> tuple[dict[str, str], str]:
    """Write bundle and ONNX file of one budget; return where they are, seen from `folder`, and which exporter made it.

    What `export` cannot write is exported as was `asked`.
    """
    place = folder / name
    bundle.save(place / "bundle")
    write = partial(export_onnx, bundle.model, bundle.example_inputs(2), place / "model.onnx")
    try:
        result = write(export, bundle.task, bundle.inputs)
    except CompressError:
        if export == asked:
            raise
        result = write(asked, bundle.task, bundle.inputs)
    return {"bundle": f"{name}/bundle", "onnx": f"{name}/model.onnx"}, result.exporter
