"""From positions that another library has removed of tensors to the units of our groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from compress.core.errors import InputError
from compress.graph.graph import Graph, Group

Removed = Mapping[tuple[str, int], Tensor]
"""Tensor name and dimension -> bool for each position along it: whether it has gone. What is whole is left out."""


def units_left(graph: Graph, removed: Removed) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph, and the units that stay of each of its groups that was narrowed.

    A unit has gone where all its positions in all tensors have. Where a group repeats inside each head, the heads may
    have lost units at different places: then its units are paired anew (`Group.rematched`) in the graph that is
    returned. That nothing else has gone is for the caller to see, by the plan that this makes.

    Raises:
        InputError: the heads of a layer have lost different numbers of units.
    """
    unexplained = {key: mask.clone() for key, mask in removed.items()}
    groups, kept = {group.name: group for group in graph.groups}, {}
    for group in sorted(graph.groups, key=lambda group: group.repeats > 1):  # whole heads before units of heads
        gone = _gone(group, unexplained)
        if not gone.any():
            continue
        if group.repeats > 1:
            group, gone = _paired(group, gone, dead=_gone(group, removed).all(0))
            groups[group.name] = group
        for part in group.slices:
            unexplained[part.tensor, part.dim][part.positions[gone].reshape(-1)] = False
        kept[group.name] = (~gone).nonzero()[:, 0]
    return replace(graph, groups=tuple(groups[group.name] for group in graph.groups)), kept


def _gone(group: Group, removed: Removed) -> Tensor:
    """Return (size, repeats) -> whether all positions of a unit have gone; (size,) for a group without repeats."""
    if any((part.tensor, part.dim) not in removed for part in group.slices):
        return torch.zeros(group.size, dtype=torch.bool)
    gone = torch.stack([removed[part.tensor, part.dim][part.positions].all(2) for part in group.slices]).all(0)
    return gone[:, 0] if group.repeats == 1 else gone


def _paired(group: Group, gone: Tensor, dead: Tensor) -> tuple[Group, Tensor]:
    """Return the group with its units paired so that the same have gone in every repeat, and which those are.

    `gone` is (size, repeats); of a repeat that is `dead`, since its whole head has gone, any may go.
    """
    counts = gone.sum(0)[~dead].unique().tolist()
    if len(counts) != 1:
        raise InputError(
            f"{group.name} has lost {' and '.join(map(str, counts))} units in different heads; "
            "heads that share a layer must stay equally wide"
        )
    gone = torch.where(dead, gone[:, ~dead][:, :1], gone)
    if bool((gone == gone[:, :1]).all()):
        return group, gone[:, 0]
    matched = group.rematched(gone.int().argsort(dim=0, stable=True).T)
    return matched, torch.arange(group.size) >= group.size - counts[0]
