"""What report.json of a run says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.runs.measure import metrics_of
from compress.runs.recipe import Recipe
from compress.runs.stage import Act, compares


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
    keys, main = metrics_of(recipe.task), recipe.task.metrics[0]
    found: dict[str, Any] = {
        "schema": 1,
        "name": recipe.name,
        "recipe_sha256": recipe.sha256(),
        "seed": recipe.seed,
        "environment": environment,
        "stages": [
            {"name": record["name"], "seconds": round(record["seconds"], 3), "metrics": record["metrics"]}
            for record in records
        ],
        "task": {"name": recipe.task.name, "main_metric": main.name, "direction": main.direction},
        "baseline": {key: baseline.get(key) for key in keys},
        "final": {key: final.get(key) for key in keys},
        "latency_ratio": None if ratio is None else {key: ratio[key] for key in ("median", "ci95", "blocks")},
        "efficiency": _efficiency(ratio, baseline.get("macs"), final.get("macs")),
    }
    for record in records:
        found |= record.get("in_report", {})
    return found


def _of_a_search(name: str, value: Any) -> bool:
    """Return whether a metric is the one number that a search takes for latency, which no run was timed for."""
    return name == "latency_ms" and not isinstance(value, Mapping)


def _efficiency(ratio: Mapping[str, Any] | None, before: int | None, after: int | None) -> float | None:
    """Return the latency ratio over the MAC ratio; None where latency was not measured."""
    return None if ratio is None or not before or not after else ratio["median"] / (before / after)
