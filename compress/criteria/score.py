"""Score the units of a graph by a criterion, and pair the units of repeats (heads) by their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.kept_state import state_kept
from compress.criteria import unit_criteria
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, named_tensors
from compress.graph.graph import Graph, Group
from compress.graph.watch import emptied


def score_units(
    model: nn.Module, graph: Graph, criterion: str | UnitCriterion, data: ScoringData
) -> tuple[Graph, dict[str, Tensor]]:
    """Return how much every unit is worth (group name -> float64 (size,), higher is kept longer).

    Where a group repeats inside each head, its units may be chosen in every head on their own: the criterion sees
    each repeat, the units of each are sorted from strong to weak, and unit u of the group becomes the u-th of every
    repeat; its score is the sum of theirs. The graph that is returned has its groups rematched in that way, but for
    those that are rigid.

    `criterion` is one with its options, or the name of one that is at its defaults.

    Raises:
        InputError: a weight is not finite, or the criterion is unknown or cannot score this model.
    """
    chosen = unit_criteria.get(criterion)() if isinstance(criterion, str) else criterion
    _refuse_not_finite(model, graph)
    free = {group.name for group in graph.groups if group.repeats > 1 and not group.rigid}
    seen = [group.expanded() if group.name in free else group for group in graph.groups]
    before = _versions(model)
    with state_kept(model):
        scores = chosen.scores(model, seen, replace(data, renewed=partial(emptied, model, graph.caches)))
    if _versions(model) != before:
        raise InputError(f"prune.criterion: {type(chosen).__name__} changes the weights of the model that it scores")
    scores = _one_for_each_unit(scores, seen, chosen)
    _refuse_senseless(scores, chosen)
    groups: list[Group] = []
    for group in graph.groups:
        if group.name in free:
            value, order = scores[group.name].view(group.repeats, group.size).sort(dim=1, descending=True, stable=True)
            group, scores[group.name] = group.rematched(order), value.sum(0)
        groups.append(group)
    return replace(graph, groups=tuple(groups)), scores


def _versions(model: nn.Module) -> dict[str, int]:
    """Return how often each weight of the model has been written to."""
    return {name: parameter._version for name, parameter in model.named_parameters()}


def _one_for_each_unit(scores: Any, groups: Sequence[Group], criterion: UnitCriterion) -> dict[str, Tensor]:
    """Return scores as float64 on the CPU; InputError where a criterion, which may be a third party's, left some out.

    Those of groups that were not asked for are dropped.
    """
    found = {}
    for group in groups:
        score = scores.get(group.name) if isinstance(scores, Mapping) else None
        if not isinstance(score, Tensor) or score.shape != (group.size,) or score.is_complex():
            got = f"a tensor {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise InputError(
                f"prune.criterion: {type(criterion).__name__} gives {got} for {group.name!r}; "
                f"allowed: a number for each of its {group.size} units"
            )
        found[group.name] = score.detach().double().cpu()
    return found


def _refuse_not_finite(model: nn.Module, graph: Graph) -> None:
    tensors = named_tensors(model)
    for name in dict.fromkeys(part.tensor for group in graph.groups for part in group.slices):
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"the weights cannot be scored: {name!r} holds values that are not finite (NaN or Inf)")


def _refuse_senseless(scores: Mapping[str, Tensor], criterion: UnitCriterion) -> None:
    """Raise InputError where scores do not rank units: some are no numbers, or none of a loss has any effect."""
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise InputError(f"the units of {name!r} cannot be scored: NaN or infinite values; check the data")
    if criterion.needs_loss and scores and not any(bool(score.any()) for score in scores.values()):
        raise InputError("the loss depends on no unit of the model: all of them score 0; check data and outputs")
