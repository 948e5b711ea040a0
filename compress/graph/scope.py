"""Which groups a recipe lets pruning touch: kinds of units, and globs over layer names."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from compress.core.errors import InputError, did_you_mean
from compress.core.globs import named
from compress.graph.graph import Graph, Group, Skip

Unit = Literal["channels", "heads", "head_dims", "mlp"]
"""A kind of units, see `Group`."""


def in_scope(
    graph: Graph, model: nn.Module, units: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> Graph:
    """Return `graph` with the groups that may be narrowed; the others are listed as left whole, with the reason.

    A glob matches a group by its name, by any layer whose output it narrows, or by a module around one.

    Raises:
        InputError: a glob matches no layer of the model, or nothing is left to prune.
    """
    layers = [name for name, _ in model.named_modules() if name]
    for key, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            _require_match(key, glob, [*layers, *(group.name for group in graph.groups)])
    kept, skipped = [], list(graph.skipped)
    for group in graph.groups:
        reason = _reason(group, units, include, exclude)
        if reason is None:
            kept.append(group)
        else:
            skipped += [Skip(layer, reason) for layer in group.layers]
    names = {group.name for group in kept}
    ties = tuple(tie for tie in graph.ties if all(name in names for name in tie))
    halved = {name for tie in graph.ties if tie not in ties for name in tie} & names
    for group in kept:
        if group.name in halved:
            skipped += [Skip(layer, "it is tied to a layer that stays whole") for layer in group.layers]
    groups = tuple(group for group in kept if group.name not in halved)
    if not groups:
        raise InputError(
            "prune: no layer is left to prune; " + "; ".join(f"{skip.layer}: {skip.reason}" for skip in skipped[:3])
        )
    return replace(graph, groups=groups, skipped=tuple(skipped), ties=ties)


def left_whole(graph: Graph, names: Collection[str], reason: str) -> Graph:
    """Return `graph` without the groups of these names and their ties; that their layers stay whole has a reason."""
    narrowed = {layer for group in graph.groups if group.name not in names for layer in group.layers}
    skips = [
        Skip(f"{layer}:{group.kind}" if layer in narrowed else layer, f"{group.kind} stay whole: {reason}")
        for group in graph.groups
        if group.name in names
        for layer in group.layers
    ]
    return replace(
        graph,
        groups=tuple(group for group in graph.groups if group.name not in names),
        skipped=(*graph.skipped, *skips),
        ties=tuple(tie for tie in graph.ties if set(tie).isdisjoint(names)),
    )


def _require_match(key: str, glob: str, names: Sequence[str]) -> None:
    if not fnmatch.filter(names, glob):
        raise InputError(
            f"prune.{key}: the pattern {glob!r} matches no layer; allowed are globs over layer names such as "
            f"{names[0]!r}{did_you_mean(glob, names)}"
        )


def _reason(group: Group, units: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> str | None:
    names = [group.name, *group.layers]
    if group.kind not in units:
        return f"{group.kind} are not among prune.units"
    for glob in exclude:
        if any(named(name, glob) for name in names):
            return f"prune.exclude: {glob!r}"
    if include and not any(named(name, glob) for glob in include for name in names):
        return "not in prune.include"
    return None
