"""The one line that ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.core.formatting import (
    MINUS,
    MISSING,
    arrow,
    arrow_with_prefix,
    count,
    milliseconds,
    percent_change,
    times,
)
from compress.report.results import read_run
from compress.report.schema import Metrics, Report, parse


def summary_line(report: dict[str, Any], run_dir: Path | str | None = None, model: str | None = None) -> str:
    """Return a run's summary, in which what was not measured is left out.

    `swin_base  MACs 15.5→7.4 G (−52 %)  params 88→42 M  METRIC 83.5→83.3  latency 58→37 ms (1.55×, efficiency 0.74)
    runs/dimap_swin` (one line), METRIC the label of the task's main one. Where masks leave zeros in the tensors, MACs
    and parameters are the nonzero ones.

    Args:
        report: the contents of report.json; a foreign schema is an InputError.
        run_dir: shown at the end; by default `runs/<name>`.
        model: shown at the start; by default the name of the run.
    """
    return summarise(parse(Report, report, "report.json"), run_dir, model)


def summary_of(run_dir: Path) -> str:
    """Return the summary of a run directory, with the model's name from its recipe."""
    run = read_run(run_dir)
    return summarise(run.report, run.shown_path, run.model)


def summarise(report: Report, run_dir: Path | str | None = None, model: str | None = None) -> str:
    """Return the summary of a report that is read already; see `summary_line`."""
    baseline, final = report.compared, report.final
    parts = [
        model or report.name,
        _macs(baseline, final),
        _counts("params", *sizes(baseline, final, "params")),
        _main(report),
        _quantized(report),
        _latency(report),
        _rank(report),
        str(run_dir or f"runs/{report.name}"),
    ]
    return "  ".join(part for part in parts if part)


def masked(metrics: Metrics, name: str) -> bool:
    """Whether `name` (params or macs) counts zeros that masks have put there."""
    whole, nonzero = getattr(metrics, name), getattr(metrics, f"nonzero_{name}")
    return whole is not None and nonzero is not None and nonzero < whole


def sizes(baseline: Metrics, final: Metrics, name: str) -> tuple[str, float | None, float | None]:
    """Return (prefix of the label, before, after) of params or macs: nonzero ones where the final model has masks."""
    if not masked(final, name):
        return "", getattr(baseline, name), getattr(final, name)
    before = getattr(baseline, f"nonzero_{name}")
    return "nonzero ", getattr(baseline, name) if before is None else before, getattr(final, f"nonzero_{name}")


def _macs(baseline: Metrics, final: Metrics) -> str:
    label, before, after = sizes(baseline, final, "macs")
    text = _counts("MACs", label, before, after)
    return f"{text} ({percent_change(before, after)})" if before and after is not None else text


def _counts(name: str, label: str, before: float | None, after: float | None) -> str:
    if after is None:
        return ""
    return f"{label}{name} {count(after) if before is None else arrow_with_prefix(before, after)}"


def _main(report: Report) -> str:
    """Return the main metric of both models, with one digit less than in tables."""
    main = report.main
    before, after = report.compared.value(main.name), report.final.value(main.name)
    if after is None:
        return ""
    digits = max(0, main.decimals(after if before is None else before, after) - 1)
    unit = "" if main.unit in ("", "%") else f" {main.unit}"
    return f"{main.label} {'' if before is None else f'{before:.{digits}f}→'}{after:.{digits}f}{unit}"


def _quantized(report: Report) -> str:
    """Return in what numbers the file computes, where the run has asked for fewer bits."""
    found = report.quantized
    if found is None:
        return ""
    if not found.kept:
        return f"float ({found.shown} not kept)"
    if found.types != "int8":
        return found.shown
    return f"{found.shown} in {found.integer_layers} of {found.layers} layers"


def _rank(report: Report) -> str:
    """Return how well a supernet ranks, and what counting MACs does."""
    rank = report.rank
    if rank is None:
        return ""
    if not rank.proxies:
        return f"{rank.architectures} networks scored"
    ours, macs = (
        next((each for each in rank.proxies if each.name.startswith(name)), None) for name in ("supernet", "MACs")
    )
    assert ours is not None
    text = (
        f"Spearman {correlation(ours.spearman)}  Kendall {correlation(ours.kendall)} of {ours.architectures} networks"
    )
    return text if macs is None else f"{text} (MACs alone {correlation(macs.spearman)})"


def correlation(value: float | None) -> str:
    """Return a correlation as people read it; a dash where there is none."""
    return MISSING if value is None else f"{value:.3f}".replace("-", MINUS)


def told_by_cpu_time(report: Report) -> bool:
    """Whether latencies, and their ratio, are told by CPU times: on a busy machine, of models on one thread of it.

    `evaluators.latency.measure.Comparison` measures the ratio so.
    """
    if report.alone:
        return report.final.latency_ms.by_cpu(report.final.latency_ms.contended)
    both = report.compared.latency_ms, report.final.latency_ms
    busy = any(each.contended for each in both)
    return all(each.by_cpu(busy) for each in both) and report.latency_ratio.median is not None


def _latency(report: Report) -> str:
    """Return both latencies and their ratio, which are of the same runs and the same clock."""
    ratio, efficiency = report.latency_ratio.median, report.efficiency
    by_cpu = told_by_cpu_time(report)
    both = report.compared.latency_ms, report.final.latency_ms
    before, after = (each.cpu_p50 if by_cpu else each.p50 for each in both)
    if after is None:
        return ""
    inside = [] if ratio is None else [times(ratio)]
    inside += [] if efficiency is None else [f"efficiency {efficiency:.2f}"]
    pair = milliseconds(after) if before is None else f"{arrow(before, after)} ms"
    pair += " of CPU time" if by_cpu else ""
    return f"latency {pair}" + (f" ({', '.join(inside)})" if inside else "")
