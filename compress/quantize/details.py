"""What became of the quantising, as plain values for details.json, and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.core.formatting import times
from compress.quantize.choose import FASTER, Candidate, Choice
from compress.quantize.judge import drop


def details_of(choice: Choice, kept: Candidate | None, tried: Sequence[Candidate]) -> dict[str, Any]:
    """Return everything about a choice: what was tried, what each costs and gains, and which file is kept."""
    config, names = choice.config, {layer.node: layer.name for layer in choice.source.layers}
    best = kept or max(tried, key=lambda each: each.speed)
    return {
        "kept": kept is not None,
        "types": config.types,
        "way": best.way.name,
        "method": best.way.method,
        "activation_type": best.way.types and best.way.types.activation,
        "weight_type": best.way.types and best.way.types.weight,
        "reduce_range": best.way.types and best.way.types.reduce_range,
        "per_channel": best.way.per_channel,
        "operators": list(best.way.operators),
        "processor": {"machine": choice.processor.machine, "features": list(choice.processor.features)},
        "integer_layers": best.integer,
        "layers": len(choice.source.layers),
        "left_float": [names.get(node, node) for node in [*choice.excluded, *best.left]],
        "sensitivity": [{"name": each.name, "error": each.error} for each in best.sensitive],
        "bytes": [choice.source.path.stat().st_size, best.file.stat().st_size if best.file.is_file() else None],
        "latency_ratio": best.ratio,
        "max_drop": choice.most,
        "calibration": None
        if best.way.method != "static" or choice.images.calibration is None
        else {
            "images": choice.images.calibration.num_samples,
            "method": config.calibrate,
        },
        "judged": {
            "images": choice.images.judged.num_samples,
            "before": choice.before.metrics,
            "after": best.judgement and best.judgement.metrics,
            "agreement": best.judgement and best.judgement.agreement(choice.before),
        },
        "candidates": [_candidate(choice, each) for each in tried],
    }


def _candidate(choice: Choice, candidate: Candidate) -> dict[str, Any]:
    judged = candidate.judgement
    return {
        "way": candidate.way.name,
        "latency_ratio": candidate.speed or None,
        "drop": None if judged is None else drop(choice.task, choice.before, judged),
        "agreement": None if judged is None else judged.agreement(choice.before),
        "integer_layers": candidate.integer,
        "left_float": len(candidate.left),
        "bytes": candidate.file.stat().st_size if candidate.file.is_file() else None,
        "problem": candidate.problem,
    }


def in_brief(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the details that report.json has."""
    keys = ("kept", "types", "way", "integer_layers", "layers", "left_float", "bytes", "latency_ratio")
    return {
        **{key: details[key] for key in keys},
        "agreement": (details["test"] or details["judged"])["agreement"],
    }


def verdict(choice: Choice, kept: Candidate | None, tried: Sequence[Candidate]) -> str:
    """Return which file is kept and why, in a sentence."""
    shown, main = choice.config.shown, choice.task.main_metric
    if kept is not None:
        assert kept.judgement is not None and kept.ratio is not None
        low, high = kept.ratio["ci95"]
        left = f", {len(kept.left)} nodes left float" if kept.left else ""
        before, after = choice.before.metrics[main.name], kept.judgement.metrics[main.name]
        assert before is not None and after is not None  # `judge` refuses such
        runs = f", {kept.integer} of {len(choice.source.layers)} layers run as integers" if kept.way.types else ""
        return (
            f"{shown} is kept ({kept.way.name}{left}): {times(kept.speed)} as fast as the float file (95 % interval "
            f"{times(low)} to {times(high)}), {main.label} {main.show_change(before, after)} on "
            f"{choice.images.judged.num_samples} held-out training images{runs}"
        )
    needed = f"more than {times(FASTER)} is needed" if choice.config.types == "int8" else "it must not be slower"
    reasons = [_why_not(choice, each, needed) for each in tried]
    return f"the float file stays, {shown} is not kept: {'; '.join(reasons)}"


def _why_not(choice: Choice, candidate: Candidate, needed: str) -> str:
    main = choice.task.main_metric
    if candidate.problem is not None:
        return f"{candidate.way.name}: {candidate.problem}"
    text = f"{candidate.way.name} is {times(candidate.speed)} as fast"
    if candidate.judgement is not None and not choice.good(candidate.judgement):
        lost = drop(choice.task, choice.before, candidate.judgement)
        told = f"{lost:.{main.decimals(lost, choice.most)}f} {main.change_unit}".rstrip()
        return f"{text}, and loses {told} of {main.label} (allowed {choice.most:g})"
    return f"{text} ({needed})"
