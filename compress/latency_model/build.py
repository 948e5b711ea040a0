"""Make the latency model of a given network by measuring a few narrowed copies of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from torch import nn

from compress.core.tensors import Inputs
from compress.graph.graph import Graph, inside
from compress.latency_model.grid import Network, candidate_widths, networks
from compress.latency_model.model import LatencyModel, Term, fitted
from compress.latency_model.survey import Measured, Survey, Surveyor, default_cache
from compress.latency_model.table import Table
from compress.latency_model.units import Unit, find_units
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.width_multiple import width_multiple

COUNT = 25
"""So many copies are measured, the whole model among them: each width of a group occurs in three or more."""
OVERHEADS = [step / 1e4 for step in range(41)]
"""What the profile may add to each operator's time, ms; measured on one processor: 0.0012 to 0.0018."""
LEAST_LEFT = 0.1
CONSTANT_PENALTY = 0.3
ANCHORS = 4
NO_FASTER = 0.005
"""Over the root of the number of groups: a width is left out that saves less than this of the network's time."""


def latency_model(
    model: nn.Module,
    graph: Graph,
    example_inputs: Inputs,
    latency: LatencyConfig,
    cache: Path | None = None,
    count: int = COUNT,
    seed: int = 0,
) -> LatencyModel:
    """Return what `model` takes on the target of `latency` at any of a choice of widths, and without any blocks.

    `count` copies with random widths and without random blocks are run with ONNX Runtime, all in turns. Its profile
    tells what each layer takes where it stands, with the layouts, fusions and caches that it has there. Layers of one
    kind share a table by their widths; `table.Table` completes it. Constant and factor are fitted to the times of the
    whole copies.

    Args:
        model: the network.
        graph: its groups and blocks.
        example_inputs: what `graph` was made with.
        latency: target and settings; how long its measurements take does not matter here.
        cache: folder that keeps what was measured; by default `survey.default_cache()`.
        count: copies to measure.
        seed: of the draw of copies.

    Raises:
        InputError: the settings do not suit the model or the target.
        CompressError: a copy could not be exported, or the target failed.
    """
    widths = candidate_widths(graph, width_multiple(latency.target).value)
    drawn = networks(graph, widths, count, seed)
    surveyor = Surveyor(model, graph, example_inputs, latency, cache or default_cache())
    return explained(surveyor, widths, drawn, surveyor.measure(drawn))


def explained(
    surveyor: Surveyor, widths: Mapping[str, tuple[int, ...]], drawn: Sequence[Network], survey: Survey
) -> LatencyModel:
    """Return the latency model that explains what was measured of the networks `drawn`, the whole one first.

    `widths` are those of each group that occur in them.
    """
    graph = surveyor.graph
    units = find_units(graph, surveyor.classes, [[each[0] for each in one.places] for one in survey.networks])
    overhead = _overhead(survey.networks)
    tables = _tables(units, graph, drawn, survey.networks, overhead)
    terms = tuple(Term(unit.name, unit.groups, unit.block, tables[unit.kind].ms) for unit in units)
    facts = {
        "target": surveyor.latency.target.shown,
        **surveyor.latency.model_dump(include={"threads", "batch", "provider", "optimization"}),
        "clock": survey.clock,
        "contended": survey.contended,
        "networks": len(drawn),
        "measured_ms": survey.networks[0].ms,
        "environment": survey.environment,
    }
    raw = LatencyModel(graph, terms, 0.0, 1.0, widths, 0.0, facts)
    sums = [raw.layers_ms(each.widths, each.dropped) for each in drawn]
    constant, factor, error = fitted(sums, [each.ms for each in survey.networks])
    found = replace(raw, constant=constant, factor=factor, error=error)
    more = partial(_including, surveyor, widths, drawn, survey)
    return replace(found, widths=_worthwhile(found), more=more)


def _including(
    surveyor: Surveyor,
    widths: Mapping[str, tuple[int, ...]],
    drawn: Sequence[Network],
    survey: Survey,
    wanted: Sequence[Network],
) -> LatencyModel:
    """Return the model that explains further networks as well, measured beside a few of the first.

    A machine is not equally fast at all times: what the first take now, over what they took, is the scale.
    """
    anchors = len(drawn[:ANCHORS])
    found = surveyor.measure([*drawn[:ANCHORS], *wanted]).networks
    scale = median(old.ms / new.ms for old, new in zip(survey.networks, found[:anchors], strict=False))
    scaled = [
        Measured(ms=scale * each.ms, places=[(place, scale * ms, count) for place, ms, count in each.places])
        for each in found[anchors:]
    ]
    known = {
        name: tuple(sorted({*own, *(each.widths[name] for each in wanted if name in each.widths)}))
        for name, own in widths.items()
    }
    together = survey.model_copy(update={"networks": [*survey.networks, *scaled]})
    return explained(surveyor, known, [*drawn, *wanted], together)


def _overhead(measured: Sequence[Measured]) -> float:
    """Return what the profile adds to the time of an operator, ms.

    That with which the sums explain whole networks best, with little of a constant left: a run begins in microseconds.
    """
    sums = [sum(ms for _, ms, _ in each.places) for each in measured]
    counts = [sum(count for _, _, count in each.places) for each in measured]
    times = [each.ms for each in measured]

    def error(overhead: float) -> float:
        sums_left = [max(LEAST_LEFT * s, s - overhead * n) for s, n in zip(sums, counts, strict=True)]
        constant, _, off = fitted(sums_left, times)
        return off + CONSTANT_PENALTY * abs(constant) / times[0]

    return min(OVERHEADS, key=error)


def _tables(
    units: Sequence[Unit], graph: Graph, drawn: Sequence[Network], measured: Sequence[Measured], overhead: float
) -> Mapping[object, Table]:
    """Return the table of each kind of unit."""
    owner = {module: unit for unit in units for module in unit.modules}
    times: dict[object, list[tuple[tuple[int, ...], float]]] = {}
    for network, found in zip(drawn, measured, strict=True):
        spent: dict[str, float] = {}
        for place, ms, count in found.places:
            name = owner[place[0]].name
            spent[name] = spent.get(name, 0.0) + max(0.0, ms - overhead * count)
        widths = {**graph.widths(), **network.widths}
        for unit in units:
            if unit.block is None or not inside(unit.block, network.dropped):
                at = tuple(widths[group] for group in unit.groups)
                times.setdefault(unit.kind, []).append((at, spent.get(unit.name, 0.0)))
    return {kind: Table(each) for kind, each in times.items()}


def _worthwhile(model: LatencyModel) -> dict[str, tuple[int, ...]]:
    """Return the widths of each group without those that a wider one is as fast as, all other groups being whole."""
    slack = NO_FASTER * model.dense_ms / max(1, len(model.graph.groups)) ** 0.5
    found = {}
    for name, widths in model.widths.items():
        times = [model.ms(model.step(name, width)) for width in widths]
        best = [min(times[place + 1 :], default=float("inf")) for place in range(len(times))]
        found[name] = tuple(w for w, ms, wider in zip(widths, times, best, strict=True) if ms + slack < wider)
    return found
