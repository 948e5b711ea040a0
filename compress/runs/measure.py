"""Measure a bundle, and write it as ONNX, for the stages that leave another model than they were given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.progress import say
from compress.export.exporters import ExportConfig
from compress.export.exporters import export as export_onnx
from compress.runs.context import Context
from evaluators.tasks import TaskConfig
from evaluators.tasks.evaluation import evaluate

COSTS = (
    "params", "nonzero_params", "macs", "nonzero_macs", "onnx_bytes", "onnx_parity_max_rel", "latency_ms"
)  # fmt: skip


def metrics_of(task: TaskConfig) -> tuple[str, ...]:
    """Return the keys of METRICS, see the contract: the task's own, and those of every model."""
    return (*(metric.name for metric in task.metrics), *COSTS)


def measured(bundle: Bundle, context: Context) -> Bundle:
    """Return the bundle with accuracy and cost measured; what of its ONNX file was known is no longer true."""
    accuracy: dict[str, Any] = {}
    if context.data is not None and context.data.test is not None and context.recipe.task.metrics:
        with on_device(bundle.model, context.device):
            accuracy = dict(evaluate(bundle.model, context.data.test, context.data.task, context.device))
    metrics = {**dict.fromkeys(metrics_of(context.recipe.task)), **accuracy, **bundle.costs()}
    return replace(bundle, metrics=metrics)


def exported(bundle: Bundle, config: ExportConfig, path: Path, context: Context) -> Bundle:
    """Write the bundle to `path`, checked against the module, and return it with what is known of the file."""
    result = export_onnx(bundle.model, bundle.example_inputs(2), path, config, bundle.task, bundle.inputs)
    found = result.to_dict()
    context.details["export"] = {name: value for name, value in found.items() if name not in ("path", "bytes")}
    context.details["notes"] = [*context.details.get("notes", []), *result.notes]
    for note in result.notes:
        say(note)
    return with_metrics(bundle, onnx_bytes=result.bytes, onnx_parity_max_rel=result.parity_max_rel)


def with_metrics(bundle: Bundle, **metrics: Any) -> Bundle:
    """Return the bundle with further metrics."""
    return replace(bundle, metrics={**bundle.metrics, **metrics})
