"""Reorder the units of a model by their worth, without changing what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.criteria.unit_criterion import named_tensors
from compress.graph.graph import Graph


@dataclass(frozen=True)
class Ranking:
    """What every unit of `graph` is worth by a criterion: group -> float64 (size,); higher is kept longer.

    `graph` pairs the units of different heads by their worth, so its units differ from those of the space's own.
    """

    graph: Graph
    scores: Mapping[str, Tensor]


@torch.no_grad()
def sort_units(module: nn.Module, graph: Graph, ranking: Ranking) -> None:
    """Move the best units of every group of `graph` to the front, in place.

    Units that repeat inside each head are sorted inside their heads first: those orders are of heads where they are.
    """
    tensors = named_tensors(module)
    for group in sorted(graph.groups, key=lambda group: -group.repeats):
        order = ranking.scores[group.name].sort(descending=True, stable=True).indices
        for part, matched in zip(group.slices, ranking.graph.group(group.name).slices, strict=True):
            tensor = tensors[part.tensor]
            source = torch.arange(tensor.shape[part.dim])
            source[part.positions.reshape(-1)] = matched.positions[order].reshape(-1)
            _reorder(tensor, part.dim, source)


def _reorder(tensor: Tensor, dim: int, source: Tensor) -> None:
    tensor.copy_(tensor.index_select(dim, source.to(tensor.device)))
