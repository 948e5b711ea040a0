"""A choice of widths that was tried on the model: what follows where it fails, and whether it costs what it should."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from compress.core.errors import CompressError
from compress.core.progress import say
from compress.core.tensors import Inputs
from compress.graph.apply import apply
from compress.graph.conflict import conflict
from compress.graph.exactness import Exactness, Fault
from compress.graph.graph import Graph
from compress.graph.plan import Plan
from compress.graph.scope import left_whole
from compress.graph.select import Choice
from evaluators.cost import count_macs


def mended(
    graph: Graph,
    scored: Graph,
    choice: Choice,
    faulty: Callable[[Mapping[str, Tensor]], Fault | None],
    fault: Fault,
) -> Graph:
    """Return the graph without what made a choice fail: the groups at fault are tied or left whole.

    Heads that each kept units of their own must first keep the same ones.
    """
    full = graph.widths()
    ties = [tuple(name for name in tie if name in choice.kept) for tie in graph.ties]
    bound = {name for tie in ties for name in tie}
    lanes = [tie for tie in ties if tie] + [(name,) for name in choice.kept if name not in bound]
    lanes = [lane for lane in lanes if any(len(choice.kept[name]) < full[name] for name in lane)]

    def fails(some: Sequence[tuple[str, ...]]) -> bool:
        return faulty({name: choice.kept[name] for lane in some for name in lane}) is not None

    suspects = [lane for lane in lanes if not set(lane).isdisjoint(fault.groups)]
    guilty = conflict(suspects if suspects and fails(suspects) else lanes, fails)
    names = {name for lane in guilty for name in lane}
    free = {group.name for group in scored.groups if group.name in names and group.order is not None}
    if free:
        return replace(graph, groups=tuple(replace(g, rigid=g.rigid or g.name in free) for g in graph.groups))
    if len(guilty) > 1:
        tie = tuple(group.name for group in graph.groups if group.name in names)
        return replace(graph, ties=(*(old for old in graph.ties if names.isdisjoint(old)), tie))
    say(f"left whole, and the widths are chosen again: {', '.join(sorted(names))}: {fault}")
    return left_whole(graph, names, str(fault))


def with_counted_costs(model: nn.Module, example_inputs: Inputs, exact: Exactness, plan: Plan, graph: Graph) -> Plan:
    """Return the plan, its costs counted anew where not every shape of the narrowed model was seen.

    Over one position that is left torch may multiply element by element, which is no product, and where values decide
    what is computed (which expert a token goes to) they do so otherwise: then the plan takes on what was counted.

    Raises:
        CompressError: the narrowed model does not cost what the plan says.
    """
    if exact.complete:
        return plan
    before, after = count_macs(model, example_inputs), count_macs(apply(plan, model), example_inputs)
    slack = abs(before - plan.macs[0]) + 0.005 * before  # what the tracer does not count is outside of any choice
    if abs(after - plan.macs[1]) <= slack:
        return plan
    decided = any(step.dynamic for step in graph.record.steps)
    if not decided and not any(row.after == row.unit < row.before for row in plan.layers):
        raise CompressError(
            f"the narrowed model takes {after:,} MACs where the plan foretells {plan.macs[1]:,} "
            f"(dense: {before:,} counted, {plan.macs[0]:,} traced); please report the model"
        )
    counted = after - before + plan.macs[0]
    if decided:
        real, foretold = counted / plan.macs[0], plan.macs[1] / plan.macs[0]
        say(
            "values decide what this model computes, and other widths change them: on the example it takes "
            f"{real:.1%} of its MACs where the widths alone foretell {foretold:.1%}"
        )
    return replace(plan, macs=(plan.macs[0], counted))
