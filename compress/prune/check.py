"""Try the groups of a graph out: run the narrowed model, and leave whole, with the reason, what breaks it.

Shapes that a model computes in Python (`C // num_heads`, `reshape(B, N, C)`) leave no trace in its operations. So
every group is narrowed once, all together and by different amounts, and the model is run. If that fails the groups
at fault are found by halving. Groups that fail alone but work when they keep the same fraction are *tied*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.prune.apply import apply
from compress.prune.graph import Graph, Group, Skip, stage_of
from compress.prune.plan import make_plan

Trial = Callable[[Sequence[Group], Sequence[float]], str | None]


def checked(model: nn.Module, graph: Graph, example_inputs: Tensor) -> Graph:
    """Return `graph` with only the groups whose narrowing leaves a model that runs."""

    def trial(groups: Sequence[Group], fractions: Sequence[float]) -> str | None:
        kept = {g.name: torch.arange(max(1, int(g.size * f))) for g, f in zip(groups, fractions, strict=True)}
        return failure(model, graph, kept, example_inputs)

    broken = _broken(list(graph.groups), trial)
    ties, skips = [], list(graph.skipped)
    for cluster in _clusters([group for group, _ in broken]):
        if len(cluster) > 1 and trial(cluster, [0.5] * len(cluster)) is None:
            ties.append(tuple(group.name for group in cluster))
    tied = {name for tie in ties for name in tie}
    for group, reason in broken:
        if group.name not in tied:
            skips += [
                Skip(layer, f"{group.kind} stay whole: the forward pass fails ({reason})") for layer in group.layers
            ]
    lost = {group.name for group, _ in broken} - tied
    groups = tuple(group for group in graph.groups if group.name not in lost)
    blocks = graph.blocks
    if failure(model, graph, {}, example_inputs, blocks) is not None:
        blocks = tuple(block for block in blocks if failure(model, graph, {}, example_inputs, (block,)) is None)
    return replace(graph, groups=groups, skipped=tuple(skips), ties=tuple(ties), blocks=blocks)


def failure(
    model: nn.Module,
    graph: Graph,
    kept: dict[str, Tensor],
    example_inputs: Tensor,
    dropped: tuple[str, ...] = (),
) -> str | None:
    """Return why the model does not run (first line of the error) when narrowed like this; None if it does."""
    small = apply(make_plan(model, graph, kept, dropped=dropped), model).eval()
    try:
        with torch.no_grad():
            small(example_inputs)
    except Exception as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:120]
    return None


def _broken(groups: list[Group], trial: Trial) -> list[tuple[Group, str]]:
    """Find the groups that cannot be narrowed by themselves; amounts differ so that hidden equalities show."""
    amounts = [0.45 + 0.1 * (place % 5) for place in range(len(groups))]

    def search(start: int, end: int) -> list[tuple[Group, str]]:
        reason = trial(groups[start:end], amounts[start:end]) if end > start else None
        if reason is None:
            return []
        if end - start == 1:
            return [(groups[start], reason)]
        middle = (start + end) // 2
        return search(start, middle) + search(middle, end)

    return search(0, len(groups))


def _clusters(groups: Sequence[Group]) -> list[list[Group]]:
    """Put groups of the same total width that meet in a part of the model together."""
    clusters: list[tuple[int, set[str], list[Group]]] = []
    for group in groups:
        total = group.size * group.repeats
        stages = {stage_of(part.layer) for part in group.slices}
        joined = [c for c in clusters if c[0] == total and c[1] & stages]
        for cluster in joined:
            clusters.remove(cluster)
        members = [member for cluster in joined for member in cluster[2]]
        clusters.append((total, stages.union(*(c[1] for c in joined)), [*members, group]))
    return [members for _, _, members in clusters]
