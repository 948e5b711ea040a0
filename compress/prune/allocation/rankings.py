"""Which units of a group go first: by the criterion, or by another one, where that was measured to lose less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from compress.core.progress import track
from compress.prune.allocation.decisions import Decision
from compress.prune.allocation.losses import Judges, key_of, loss_of_widths
from compress.prune.structure import Scored


def best_ranked(
    scored: Mapping[str, Scored],
    decisions: Sequence[Decision],
    judges: Callable[[], Judges],
    known: MutableMapping[str, Any],
) -> Scored:
    """Return graph and scores in which the groups of every decision are ranked by the criterion that loses least.

    A criterion is judged by what is lost, all else whole, with about half of the units.

    Args:
        scored: criterion -> the graph, its repeats matched by it, and what each unit is worth; the first one counts
            where nothing is decided.
        decisions: on widths of the groups.
        judges: gives what measures.
        known: entries that were measured before; takes the new ones.
    """
    graph, scores = next(iter(scored.values()))
    if len(scored) == 1:
        return graph, scores
    chosen, worth = {group.name: group for group in graph.groups}, dict(scores)
    for decision in track(decisions, "comparing criteria"):
        option = _half(decision, graph.widths())
        losses = {}
        for criterion, (ranked, values) in scored.items():
            if not values.keys() >= set(decision.groups):  # no gradient reaches them
                continue
            key = f"{key_of(option, ranked)} by {criterion}"
            if key not in known:
                known[key] = loss_of_widths(ranked, values, option, judges())
            losses[criterion] = float(known[key])
        best = min(losses, key=losses.__getitem__)
        known[key_of(option, graph)] = losses[best]
        ranked, values = scored[best]
        chosen |= {name: ranked.group(name) for name in decision.groups}
        worth |= {name: values[name] for name in decision.groups}
    return replace(graph, groups=tuple(chosen[group.name] for group in graph.groups)), worth


def _half(decision: Decision, full: Mapping[str, int]) -> Mapping[str, int]:
    """Return the option that leaves nearest to half of the units."""
    name = decision.name
    return min(decision.options[:-1], key=lambda option: abs(Fraction(option[name], full[name]) - Fraction(1, 2)))
