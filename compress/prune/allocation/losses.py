"""What is lost by each single choice, all else whole: measured on data after compensation, or told by a criterion.

Measured: one decision (or block) at a time is changed in the dense model, what reads it is repaired in closed form, and
the change of the outputs is mean (z - z_d)^2 / var(z_d) on images that the repair has not seen. (The loss on labels
tells nothing there: a trained network has almost none on the images that it was trained on.) Of units, those of the
highest scores stay. A narrower option never counts as losing less than a wider one, which only noise could say.

Losses are added up, and blocks of one stage that go together lose far more than one by one (of ResNet-56 all eight of
the first stage ten times as much). That is measured, too, for the blocks that lose least: three quarters of them, and
all; how many go is what counts, not which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from compress.core.progress import track
from compress.graph.apply import apply
from compress.graph.graph import Graph, inside
from compress.graph.plan import Plan, make_plan
from compress.graph.select import strongest
from compress.prune.allocation.decisions import Decision
from compress.prune.allocation.replay import Replay

Repair = Callable[[nn.Module, Plan], object]
"""Changes the weights of a narrowed model, the dense one's apart from the plan, so that it makes up for what is gone.

Parameters are replaced, not written to: the dense model may hold them, too.
"""


@dataclass(frozen=True)
class LossTable:
    """What choices lose.

    Attributes:
        widths: decision -> the loss of each of its options.
        blocks: removable block -> the loss without it.
        together: stage -> what is lost besides where 0, 1, 2, ... of its removable blocks go.
    """

    widths: Mapping[str, tuple[float, ...]]
    blocks: Mapping[str, float]
    together: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judges:
    """What tells the loss of a changed model: `replay` of the dense one, after a repair of what is gone.

    `repair` is quick and for one choice; `refit` goes through a stage front to back, and is for many of its blocks.
    """

    replay: Replay
    repair: Repair
    refit: Callable[[str, nn.Module, Plan], object]


def measured_losses(
    graph: Graph,
    scores: Mapping[str, Tensor],
    decisions: Sequence[Decision],
    stages: Mapping[str, tuple[tuple[str, ...], bool]],
    judges: Callable[[], Judges],
    known: MutableMapping[str, Any],
) -> LossTable:
    """Return the losses, one choice at a time, and those of blocks that go together.

    Args:
        graph: with the repeats of its groups matched as for `scores`; its blocks may be removed.
        scores: group -> what each unit is worth.
        decisions: on widths of the groups.
        stages: removable blocks of each stage, and whether one of them stays; see `stages_of`.
        judges: gives what measures; called at most once.
        known: entries that were measured before; takes the new ones.
    """
    judge = cache(judges)
    singles: list[tuple[str, Mapping[str, int], tuple[str, ...]]] = [
        (key_of_blocks((b,)), {}, (b,)) for b in graph.blocks
    ]
    singles += [(key_of(option, graph), option, ()) for decision in decisions for option in decision.options[:-1]]
    left = [entry for entry in singles if entry[0] not in known]
    if left:
        replay, repair = judge().replay, judge().repair
        left.sort(key=lambda entry: _place(replay, entry[1], entry[2]))
        for key, widths, dropped in track(left, "measuring what each choice loses"):
            known[key] = _loss(replay, _plan(replay.dense, graph, scores, widths, dropped), repair)
    lost = {d.name: [known[key_of(option, graph)] for option in d.options[:-1]] for d in decisions}
    blocks = {block: float(known[key_of_blocks((block,))]) for block in graph.blocks}
    ascending = {
        name: sorted(of, key=lambda block: (blocks[block], of.index(block)))[: len(of) - one_stays]
        for name, (of, one_stays) in stages.items()
    }
    sets = [(name, tuple(of[:count])) for name, of in ascending.items() for count in _counts(len(of))]
    for name, dropped in track(
        [s for s in sets if key_of_blocks(s[1]) not in known], "measuring blocks that go together"
    ):
        plan = make_plan(judge().replay.dense, graph, {}, dropped=dropped)
        known[key_of_blocks(dropped)] = _loss(judge().replay, plan, partial(judge().refit, name))
    return LossTable(
        widths={name: _falling([*losses, 0.0]) for name, losses in lost.items()},
        blocks=blocks,
        together={
            name: _besides(
                [blocks[block] for block in of], {len(s): known[key_of_blocks(s)] for n, s in sets if n == name}
            )
            for name, of in ascending.items()
        },
    )


def loss_of_widths(graph: Graph, scores: Mapping[str, Tensor], widths: Mapping[str, int], judges: Judges) -> float:
    """Return what is lost with these widths of some groups, of the highest scores, all else whole."""
    return _loss(judges.replay, _plan(judges.replay.dense, graph, scores, widths), judges.repair)


def _plan(
    dense: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor],
    widths: Mapping[str, int],
    dropped: tuple[str, ...] = (),
) -> Plan:
    kept = {name: strongest(scores[name], width) for name, width in widths.items()}
    return make_plan(dense, graph, kept, dropped=dropped)


def _counts(removable: int) -> list[int]:
    """Return of how many blocks of a stage it is measured what they lose together."""
    return sorted({count for count in (-(-3 * removable // 4), removable) if count > 1})


def _besides(singles: Sequence[float], measured: Mapping[int, float]) -> tuple[float, ...]:
    """Return what 0, 1, 2, ... blocks of a stage lose together besides their single losses, nothing if that is less.

    Args:
        singles: the losses of the blocks one by one, ascending.
        measured: number of blocks -> the loss without the first so many; between, the factor to the sum of the single
            losses is a geometric mean.
    """
    sums = np.cumsum([0.0, *singles])
    points = {1: 0.0} | {n: math.log(max(1.0, loss / max(sums[n], 1e-30))) for n, loss in measured.items()}
    factors = np.exp(np.interp(np.arange(len(sums)), list(points), list(points.values())))
    return tuple(float(value) for value in (factors - 1) * sums)


def key_of(widths: Mapping[str, int], graph: Graph) -> str:
    """Return what an option is called among the known losses; of a group that became rigid other units stay."""
    return " ".join(f"{name}={width}{' rigid' * graph.group(name).rigid}" for name, width in widths.items())


def key_of_blocks(blocks: Sequence[str]) -> str:
    """Return what the removal of blocks is called among the known losses."""
    return f"without {' '.join(sorted(blocks))}"


def _place(replay: Replay, widths: Mapping[str, int], dropped: tuple[str, ...]) -> int:
    """Return about where in the model a change begins, so that neighbours are measured after one another."""
    return min((replay.place.get(name.split(":")[0], -1) for name in (*widths, *dropped)), default=-1)


def _loss(replay: Replay, plan: Plan, repair: Repair) -> float:
    small = apply(plan, replay.dense, [name for name, _ in replay.dense.named_parameters()])
    repair(small, plan)
    start = replay.first_changed(changed_modules(replay.dense, small, plan.dropped))
    return replay.error(replay.quick(small, plan.dropped), start)


def changed_modules(dense: nn.Module, small: nn.Module, dropped: Sequence[str]) -> list[str]:
    """Return the modules of `small` that hold parameters which are not those of `dense`, and the blocks that are gone.

    Blocks are there under their own names, all else as the modules that own the parameters.
    """
    theirs = dict(small.named_parameters())
    changed = [
        name.rpartition(".")[0]
        for name, parameter in dense.named_parameters()
        if theirs.get(name) is not parameter and not inside(name, dropped)
    ]
    return list(dict.fromkeys([*dropped, *changed]))


def counted_losses(
    graph: Graph, scores: Mapping[str, Tensor], costs: Mapping[str, float], decisions: Sequence[Decision]
) -> LossTable:
    """Return losses without data: the sum of the scores of the units that go, a block's being all units inside it.

    Args:
        graph: whose blocks may be removed; one without groups inside stays, since nothing tells what it is worth.
        scores: group -> what each unit is worth, over what it costs.
        costs: group -> what a unit costs, by which scores were divided.
        decisions: on widths of the groups.
    """
    ascending = {name: (score.clamp(min=0.0) * costs[name]).sort().values.cumsum(0) for name, score in scores.items()}

    def lost(name: str, width: int) -> float:
        gone = len(scores[name]) - width
        return float(ascending[name][gone - 1]) if gone else 0.0

    widths = {
        decision.name: tuple(sum(lost(name, width) for name, width in option.items()) for option in decision.options)
        for decision in decisions
    }
    blocks = {}
    for block in graph.blocks:
        within = [group.name for group in graph.groups if inside(group.name, (block,)) and group.name in scores]
        if within:
            blocks[block] = sum(lost(name, 0) for name in within)
    return LossTable(widths, blocks)


def _falling(losses: Sequence[float]) -> tuple[float, ...]:
    """Return losses of ascending widths, each at least that of the next."""
    found: list[float] = []
    for loss in reversed(losses):
        found.append(max(loss, found[-1]) if found else loss)
    return tuple(reversed(found))
