"""What a pruning stage removed and left alone, as the plain values of stages/<nn-stage>/details.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from compress.graph.graph import Skip
from compress.graph.plan import Plan
from compress.prune.weights import LayerRow, WeightPruning


def weight_details(pruning: WeightPruning, uniform_macs: int) -> dict[str, Any]:
    """Return the details of a weight pruning; `uniform_macs` is the count that papers on it print."""
    return {
        "kind": "weights",
        "layers": [
            {"name": row.name, "kind": "weights", "before": row.size, "after": row.kept, "stage": row.stage}
            for row in pruning.rows
        ],
        "modules": _kept(pruning.rows, "module"),
        "stages": _kept(pruning.rows, "stage"),
        "skipped": [{"layer": skip.name, "reason": skip.reason} for skip in pruning.skipped],
        "uniform_equivalent_macs": uniform_macs,
        "notes": ["Masks keep the shapes: the ONNX file does not shrink and runs no faster."],
    }


def plan_details(plan: Plan) -> dict[str, Any]:
    """Return the details of a plan: widths, kept units per stage, blocks removed, what stays whole and why."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for layer in plan.layers:
        totals[layer.stage][0] += layer.after
        totals[layer.stage][1] += layer.before
    return {
        "kind": "structure",
        "layers": [asdict(layer) for layer in plan.layers],
        "stages": [{"name": name, "kept": kept, "total": total} for name, (kept, total) in totals.items()],
        "skipped": [{"layer": skip.layer, "reason": skip.reason} for skip in plan.skipped],
        "blocks_removed": list(plan.dropped),
        "align": plan.align,
        "predicted": {"macs": list(plan.macs), "params": list(plan.params)},
        "notes": list(plan.notes),
    }


def replacement_details(
    kind: str,
    layers: Sequence[dict[str, Any]],
    skipped: Iterable[Skip],
    costs: tuple[Mapping[str, int], Mapping[str, int]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the details of layers replaced by others; `costs` are the model's before and afterwards, as counted."""
    return {
        "kind": kind,
        "layers": list(layers),
        "skipped": [{"layer": skip.layer, "reason": skip.reason} for skip in skipped],
        "predicted": {key: [each[key] for each in costs] for key in ("macs", "params")},
        "notes": list(notes),
    }


def _kept(rows: tuple[LayerRow, ...], key: str) -> list[dict[str, Any]]:
    """Return kept and total weights per module or stage, in model order."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        totals[getattr(row, key)][0] += row.kept
        totals[getattr(row, key)][1] += row.size
    return [{"name": name, "kept": kept, "total": total} for name, (kept, total) in totals.items()]


def whole_lines(skipped: Iterable[tuple[str, str]], shown: int = 4) -> list[str]:
    """Return one line for each reason why layers stay whole; `skipped` holds (layer, reason)."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in skipped:
        reasons.setdefault(reason, []).append(layer)
    lines = []
    for reason, layers in reasons.items():
        more = f" and {len(layers) - shown} more" if len(layers) > shown else ""
        lines.append(f"stays whole: {', '.join(layers[:shown])}{more}: {reason}")
    return lines
