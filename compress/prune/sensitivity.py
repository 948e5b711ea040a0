"""Sensitivity scan: what the accuracy loses when one group alone is narrowed, without fine-tuning."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.core.progress import track
from compress.graph.graph import Graph, Group
from compress.graph.select import strongest

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class SensitivityRow:
    """One narrowing: the share of units removed, the metric then, and how much worse it is than the dense model's."""

    group: str
    kind: str
    ratio: float
    metric: float
    drop: float


def scan(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], float],
    ratios: Sequence[float] = RATIOS,
    larger_is_better: bool = True,
) -> list[SensitivityRow]:
    """Return one row for each group with scores and each ratio; `evaluate` gives the metric.

    The least units are switched off in place by zeroing all their parameters, and put back afterwards. That equals
    removing them except in norms over the channels, which still count them.
    """
    dense = evaluate(model)
    trials = [(group, ratio) for group in graph.groups if group.name in scores for ratio in sorted(ratios)]
    rows = []
    for group, ratio in track(trials, "sensitivity scan"):
        keep = max(1, round(group.size * (1 - ratio)))
        with switched_off(model, group, strongest(scores[group.name], keep)):
            metric = evaluate(model)
        drop = dense - metric if larger_is_better else metric - dense
        rows.append(SensitivityRow(group.name, group.kind, 1 - keep / group.size, metric, drop))
    return rows


@contextlib.contextmanager
def switched_off(model: nn.Module, group: Group, kept: Tensor) -> Iterator[None]:
    """Zero the parameters of all units of a group but `kept`; restore them on leaving."""
    gone = torch.ones(group.size, dtype=torch.bool)
    gone[kept] = False
    parameters = dict(model.named_parameters())
    places = [
        (parameters[part.tensor].data, part.dim, part.positions[gone].reshape(-1))
        for part in group.slices
        if part.tensor in parameters
    ]
    saved = []
    try:
        for data, dim, positions in places:
            index = positions.to(data.device)
            saved.append(data.index_select(dim, index))
            data.index_fill_(dim, index, 0.0)
        yield
    finally:
        for (data, dim, positions), values in reversed([*zip(places, saved, strict=False)]):
            data.index_copy_(dim, positions.to(data.device), values)
