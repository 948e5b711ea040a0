"""What report.json of a run says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.runs.measure import metrics_of
from compress.runs.recipe import Recipe
from compress.runs.stage import Act, compares
from evaluators.tasks import TaskConfig


def report_of(
    recipe: Recipe, acts: Sequence[Act], records: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """Return report.json, schema 1, of a run whose `acts` left `records`, one each."""
    last = records[-1]
    final = {name: value for name, value in last["metrics"].items() if not _of_a_search(name, value)}
    baseline = final  # of one model, there is nothing to compare
    if compares(acts):
        first = next(record for act, record in zip(acts, records, strict=True) if act.stage.makes_baseline)
        baseline = {**first["metrics"], "latency_ms": last.get("baseline_latency_ms")}
    ratio = last.get("latency_ratio")
    keys = metrics_of(recipe.task)
    found: dict[str, Any] = {
        "schema": 1,
        "name": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "seed": recipe.seed,
        "environment": environment,
        "stages": [_stage(act, record, last) for act, record in zip(acts, records, strict=True)],
        "task": _task(recipe.task),
        "baseline": {key: baseline.get(key) for key in keys},
        "final": {key: final.get(key) for key in keys},
        "latency_ratio": None if ratio is None else {key: ratio[key] for key in ("median", "ci95", "blocks")},
        "efficiency": _efficiency(ratio, baseline.get("macs"), final.get("macs")),
    }
    beside = [each for record in records for each in record.get("beside", ())]
    if beside:
        found.update(references=[_reference(each, keys, last) for each in beside])
    for record in records:
        found |= record.get("in_report", {})
    return found


def _task(task: TaskConfig) -> dict[str, Any]:
    """Return what the models are for, and the figure that they are chosen by; null for a task without metrics."""
    main = task.main_metric if task.metrics else None
    return {"name": task.name, "main_metric": main and main.name, "direction": main and main.direction}


def _stage(act: Act, record: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a stage: its metrics, with what the `last` one has measured of the model that it left."""
    found = {"name": record["name"], "seconds": round(record["seconds"], 3), "metrics": record["metrics"]}
    if act.stage.makes_baseline and last.get("baseline_latency_ms") is not None:
        return found | {"metrics": {**found["metrics"], "latency_ms": last["baseline_latency_ms"]}}
    return _with_latency(found, last.get("timed", {}).get(act.folder))


def _reference(network: Mapping[str, Any], keys: Sequence[str], last: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a network beside the run's."""
    metrics = {key: network["metrics"].get(key) for key in keys}
    found = {"name": network["name"], "seconds": round(network["seconds"], 3), "metrics": metrics}
    return _with_latency(found, last.get("timed", {}).get(network["onnx"]))


def _with_latency(found: dict[str, Any], timed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `found` with the figures of its ONNX file, and how many times as long the baseline takes."""
    if timed is None:
        return found
    figures, ratio = dict(timed), timed["latency_ratio"]
    del figures["latency_ratio"]
    told = None if ratio is None else {key: ratio[key] for key in ("median", "ci95", "blocks")}
    return found | {"metrics": {**found["metrics"], **figures}, "latency_ratio": told}


def _of_a_search(name: str, value: Any) -> bool:
    """Return whether a metric is the one number that a search takes for latency, which no run was timed for."""
    return name == "latency_ms" and not isinstance(value, Mapping)


def _efficiency(ratio: Mapping[str, Any] | None, before: int | None, after: int | None) -> float | None:
    """Return the latency ratio over the MAC ratio; None where latency was not measured."""
    return None if ratio is None or not before or not after else ratio["median"] / (before / after)
