"""The part of a report on files of fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.core.formatting import MISSING, arrow_with_prefix, file_size, signed, times
from compress.report.details import QuantizedDetails, Trained
from compress.report.schema import Report

if TYPE_CHECKING:
    from evaluators.tasks import Metric

SHOWN = 12
"""Nodes of a sensitivity scan that a page lists: those with the largest error."""


@dataclass(frozen=True)
class QuantizedPart:
    """Facts, the ways that were tried, and the nodes with the largest error, ready for the template."""

    title: str
    facts: list[tuple[str, str]]
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    sensitivity: list[tuple[str, str]]


def quantized_part(found: QuantizedDetails, report: Report) -> QuantizedPart:
    """Return what the page says of the stage `quantize`."""
    main = report.main
    rows = []
    for each in found.candidates:
        worse = -1 if main.direction == "maximize" else 1
        drop = MISSING if each.drop is None else signed(worse * each.drop, main.decimals(each.drop))
        texts = [
            MISSING if each.latency_ratio is None else times(each.latency_ratio),
            drop,
            _percent(each.agreement),
            f"{each.integer_layers} of {found.layers}",
            MISSING if each.bytes is None else file_size(each.bytes),
        ]
        rows.append((each.way if each.problem is None else f"{each.way}: {each.problem}", texts))
    columns = ["as fast", f"{main.label}, change", "same answer", "integer layers", "file"]
    nodes = [(each.name, f"{each.error:.1e}") for each in found.sensitivity[:SHOWN]]
    return QuantizedPart(f"{found.shown} files", list(_facts(found, main)), columns, rows, nodes)


def _facts(found: QuantizedDetails, main: Metric) -> Iterator[tuple[str, str]]:
    yield "Kept", found.way if found.kept else "the float file"
    before, after = found.bytes
    if found.kept and before is not None and after is not None:
        yield "File", f"{arrow_with_prefix(before, after)}B; the float file is model.float.onnx"
    if found.test is not None and found.test.agreement is not None:
        yield "Same answer as the float file", f"{_percent(found.test.agreement)} of {found.test.images} test images"
    lost = " ".join(filter(None, (f"{found.max_drop:g}", main.change_unit, "of", main.label)))
    yield "Judged on", f"{found.judged.images} held-out training images; allowed to lose {lost}"
    if found.calibration is not None:
        yield "Ranges", f"{found.calibration['method']} of {found.calibration['images']} other training images"
    if found.finetuned is not None:
        taken = "its weights are taken" if found.finetuned.kept else "the weights from before are taken"
        parts = [(found.finetuned.judged, "held-out training"), (found.finetuned.test, "test")]
        yield "Training for integers", "; ".join([_trained(each, of, main) for each, of in parts if each] + [taken])
    if found.left_float:
        yield "Left float", ", ".join(found.left_float)
    features = ", ".join(found.processor.get("features", [])) or "features not told"
    yield "Processor of the target", f"{found.processor.get('machine')} ({features})"


def _trained(found: Trained, of: str, main: Metric) -> str:
    floats, without, trained = (
        MISSING if each is None else main.show(each) for each in (found.floats, found.without, found.with_)
    )
    return f"{main.label} on {found.images} {of} images {floats} in floats, {without} without, {trained} with it"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f} %"
