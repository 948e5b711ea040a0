"""Try the groups of a graph out: narrow the model, hold it against the dense one, and leave whole what goes wrong.

Shapes that a model computes in Python (`C // num_heads`, `reshape(B, N, C)`) leave no trace in its operations. So all
groups are narrowed at once, by different amounts and by units drawn at random, and the result is compared with the
dense model whose removed units are silenced (`compress.graph.exactness`). Where that fails:

1. numbers that the modules at fault keep as attributes are made to follow a width, if that gets further;
2. the fewest groups that fail together are found, and *tied* (they keep the same fraction) if that works;
3. else one of them is left whole, with the reason.

What holds for a group is tried on those of the same place in other blocks next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from math import gcd

import torch
from torch import Tensor, nn

from compress.core.tensors import Inputs
from compress.graph.attribute_setting import AttributeSetting, Key, key_of
from compress.graph.conflict import conflict
from compress.graph.cost_model import CostModel
from compress.graph.exactness import Exactness, Fault, Reference
from compress.graph.graph import Graph, Skip
from compress.graph.kin import Kin, Lane, counterparts, place_of
from compress.graph.plan import make_plan

AMOUNTS = (0.45, 0.55, 0.65, 0.75, 0.85)
SHIFTS = (0, 1, 2)  # of the amounts: those of two lanes that fit one another by chance do not do so each time
MOST_SETTINGS = 32  # of attributes, tried for one fault
REFUSALS = ("AssertionError", "ValueError")  # what a model's own code raises on a width that it did not expect
MOST_GROWN = 12  # lanes that are tied one by one


def checked(model: nn.Module, graph: Graph, example_inputs: Inputs) -> Graph:
    """Return `graph` with only the groups, ties, blocks and attributes that were seen to be right.

    Args:
        model: what `graph` was built from; the same again afterwards.
        graph: of `compress.graph.build.build_graph`.
        example_inputs: what it was traced with.
    """
    trials = _Trials(model, graph, example_inputs)
    trials.settle()
    return trials.result()


@dataclass
class _Made:
    """The last narrowed model, kept since the next trial often changes only attributes of it."""

    key: object
    small: nn.Module
    reference: Reference | None = None


class _Trials:
    """The search for what can be narrowed; `lanes` are those that still take part."""

    def __init__(self, model: nn.Module, graph: Graph, example_inputs: Inputs) -> None:
        self.model, self.graph = model, graph
        self.groups = {group.name: group for group in graph.groups}
        self.exact = Exactness(model, example_inputs)
        self.lanes: list[Lane] = [(name,) for name in self.groups if self.groups[name].size > 1]
        self.lost: dict[str, str] = {}
        self.doubtful: dict[Lane, str] = {}
        self.kin = Kin(self.groups)
        self.setting = AttributeSetting(model, graph)
        self.savings = CostModel(graph).savings()
        self._shift = 0
        self._place = {name: place for place, name in enumerate(self.groups)}
        self._made: _Made | None = None
        self._seen: dict[object, Fault | None] = {}
        self._hopeless: set[tuple[str, int]] = set()

    def settle(self) -> None:
        """Narrow all lanes together until nothing is wrong any more."""
        few = len(self.lanes) <= len(AMOUNTS) ** 2  # for which two shifts will do
        for self._shift in SHIFTS[:2] if few else SHIFTS:
            while (fault := self.fault(self.lanes)) is not None:
                if not self._adapted(fault):
                    self._give_way(fault)
        self._shift = 0  # at which values are compared
        self._look_again()
        self._keep_needed_settings()

    def _look_again(self) -> None:
        """Take back what was put aside because its like in another block failed, where it does not fail itself."""
        faults = {lane: self.fault([lane]) for lane in self.doubtful}
        sound = [lane for lane, fault in faults.items() if fault is None]
        if sound and self.fault([*self.lanes, *sound]) is None:
            self.lanes += sound
        for lane, fault in faults.items():
            if lane not in self.lanes:
                self.lost |= dict.fromkeys(lane, self.doubtful[lane] if fault is None else str(fault))

    def result(self) -> Graph:
        """Return the graph of what is right."""
        left = {name for lane in self.lanes for name in lane}
        narrowed = {layer for name in left for layer in self.groups[name].layers}
        skips = [
            Skip(f"{layer}:{group.kind}" if layer in narrowed else layer, f"{group.kind} stay whole: {self.lost[name]}")
            for name, group in self.groups.items()
            if name in self.lost
            for layer in group.layers
        ]
        whole = {name for name, group in self.groups.items() if group.size == 1}
        order = {name: place for place, name in enumerate(self.groups)}
        ties = sorted((lane for lane in self.lanes if len(lane) > 1), key=lambda lane: order[lane[0]])
        return replace(
            self.setting.settled(),
            groups=tuple(group for group in self.graph.groups if group.name in left | whole),
            skipped=(*self.graph.skipped, *skips),
            ties=tuple(ties),
            blocks=self._removable_blocks(),
            candidates=(),
        )

    def fault(self, lanes: Sequence[Lane], amount: float | None = None, *, values: bool = True) -> Fault | None:
        """Return what goes wrong when these lanes are narrowed (to `amount`, else each to its own fraction).

        Without `values` only shapes are looked at.
        """
        kept = {name: units for lane in lanes for name, units in self._units(lane, amount).items()}
        if not kept:
            return None
        key = (tuple(lanes), amount, self._shift)
        if self._made is None or self._made.key != key:
            small = self.exact.narrowed(make_plan(self.model, self.graph, kept))
            self._made = _Made(key, small)
        again = (key, values, self.setting.values(kept))  # many choices of attributes come to the same numbers
        if again not in self._seen:
            self._seen[again] = self._fault(self._made, kept, values and not (self._shift and amount is None))
        return self._seen[again]

    def _fault(self, made: _Made, kept: Mapping[str, Tensor], values: bool) -> Fault | None:
        """Look at a narrowed model; at the second amounts shapes tell: values were compared at the first."""
        self.setting.enter(made.small, kept)
        if (found := self.exact.shapes(self.graph, kept, made.small)) is not None or not values:
            return found
        if made.reference is None:
            made.reference = self.exact.reference(self.graph, kept)
        self.setting.enter(made.reference.model, kept)
        found = self.exact.compared(made.reference, made.reference.model)
        return None if found is None else self.exact.confirmed(found, self.setting.settled(), kept)

    def _units(self, lane: Lane, amount: float | None) -> dict[str, Tensor]:
        """Draw the units that stay of each group of a lane."""
        sizes = [self.groups[name].size for name in lane]
        levels = gcd(*sizes)
        least = 2 if levels > 2 else 1  # of one, too much comes out right by chance
        amount = amount or _amount(self._place[lane[0]], self._shift)
        share = max(least, int(levels * amount))
        draw = torch.Generator().manual_seed(self._place[lane[0]])
        with torch.device("cpu"):
            return {
                name: torch.randperm(size, generator=draw)[: size // levels * share].sort().values
                for name, size in zip(lane, sizes, strict=True)
                if share < levels
            }

    def _adapted(self, fault: Fault) -> bool:
        """Find values for the attributes around a fault with which the model gets further."""
        mark = fault.module, fault.step
        if mark in self._hopeless:
            return False
        before = dict(self.setting.labels)
        for labels in self._settings(fault):
            self.setting.labels = labels
            if labels == before:
                continue
            found = self.fault(self.lanes)
            if (found is None or found.later > fault.later) and self._right_before():
                return True
        self.setting.labels = before
        self._hopeless.add(mark)
        return False

    def _right_before(self) -> bool:
        """Return whether nothing is wrong at the amounts that were tried before the present ones."""
        present = self._shift
        try:
            for self._shift in range(present):
                if self.fault(self.lanes) is not None:
                    return False
        finally:
            self._shift = present
        return True

    def _settings(self, fault: Fault) -> Iterator[dict[Key, str | None]]:
        """Yield choices for all attributes of the classes at fault: some need two of theirs changed.

        What such a class only compares with a width is changed where it refuses one, and after all others.
        """
        kinds = self._kinds(fault)
        refused = fault.reason.startswith(REFUSALS)
        at_fault = [c for c in reversed(self.graph.candidates) if c.kind in kinds]
        labels: dict[Key, list[str | None]] = {
            key_of(c): [None, *c.options] for c in at_fault if not c.handled and refused
        }
        labels |= {key_of(c): [*c.options, None] for c in at_fault if c.handled}
        if labels:
            for chosen in islice(product(*labels.values()), MOST_SETTINGS):
                yield {**self.setting.labels, **dict(zip(labels, chosen, strict=True))}

    def _kinds(self, fault: Fault) -> set[str]:
        """Return the classes at fault that keep numbers which may follow a width."""
        return {c.kind for c in self.graph.candidates if _related(c.module, fault.module)}

    def _sharing(self, fault: Fault) -> list[Lane]:
        """Return the lanes in modules whose attributes are those of the classes at fault, wherever they lie."""
        kinds = self._kinds(fault)
        return self.kin.within({c.module for c in self.graph.candidates if c.kind in kinds}, self.lanes)

    def _excused(self, lane: Lane, fault: Fault) -> bool:
        """Return whether a lane by itself is right with some values of the attributes around a fault."""
        before = dict(self.setting.labels)
        try:
            for labels in self._settings(fault):
                self.setting.labels = labels
                if self.fault([lane]) is None:
                    return True
        finally:
            self.setting.labels = before
        return False

    def _keep_needed_settings(self) -> None:
        """Let an attribute go its own way where the model is right without changing it."""
        labels = self.setting.labels
        for key, label in labels.items():
            if label is not None and self.lanes:
                labels[key] = None
                if self.fault(self.lanes) is not None:
                    labels[key] = label

    def _give_way(self, fault: Fault) -> None:
        """Tie the groups at fault, or leave one whole."""
        suspects = [lane for lane in self.lanes if not set(lane).isdisjoint(fault.groups)]
        pool = suspects if suspects and self.fault(suspects) is not None else self.lanes
        guilty = conflict(pool, lambda lanes: self.fault(lanes) is not None)
        if len(guilty) == 1 and self._excused(guilty[0], fault):  # attributes are at the service of another one
            near = [*self.kin.near(guilty[0], self.lanes), *self._sharing(fault)]
            worse = [lane for lane in dict.fromkeys(near) if lane != guilty[0] and not self._excused(lane, fault)]
            if worse and self.fault(worse[:1]) is not None:
                guilty = worse[:1]
                self._hopeless.clear()
        alone = self.fault(guilty)
        assert alone is not None
        if len(guilty) > 1 and self._tied(guilty):
            return
        if len(guilty) == 1 and not alone.scaled:  # no other width makes up for a factor
            for partners in self.kin.partners(guilty[0], self.lanes, alone.groups):
                if self._tied([guilty[0], *partners]):
                    return
            if self._grown(guilty[0], alone):
                return
        loser = min(guilty, key=lambda lane: sum(self.savings[name] for name in lane))
        self.lanes.remove(loser)
        self.lost |= dict.fromkeys(loser, str(alone))
        if len(guilty) == 1:
            for lane in [lane for lane in self.lanes if place_of(lane) == place_of(loser)]:
                self.lanes.remove(lane)
                self.doubtful[lane] = str(alone)

    def _grown(self, lane: Lane, fault: Fault) -> bool:
        """Tie a lane with more and more others, each time so that the model gets further, until it works."""
        lanes = [lane]
        while len(lanes) <= MOST_GROWN:
            for partners in self.kin.partners(self._joined(lanes), self.lanes, fault.groups):
                some = [other for other in partners if other not in lanes]
                found = self.fault([self._joined([*lanes, *some])], 0.5, values=False) if some else fault
                if found is None:
                    return self._tied([*lanes, *some])
                if found.later > fault.later:
                    lanes, fault = [*lanes, *some], found
                    break
            else:
                return False
        return False

    def _tied(self, lanes: Sequence[Lane]) -> bool:
        """Tie lanes if they work at the same fraction, and those at the same places of other blocks."""
        if not self._works(lanes):
            return False
        fewer = self._needed(lanes)
        lanes = fewer if len(fewer) == len(lanes) or self._works(fewer) else lanes
        for other in counterparts(lanes, self.lanes):
            self._joined(other, enter=True)
        self._joined(lanes, enter=True)
        return True

    def _needed(self, lanes: Sequence[Lane]) -> Sequence[Lane]:
        """Return the lanes of a tie that works, without what its shapes do not need to be tied with the first.

        Of lanes at the same place of several blocks mostly all are needed or none.
        """
        for place in dict.fromkeys(place_of(lane) for lane in lanes[1:]):
            first, *others = (lane for lane in lanes[1:] if place_of(lane) == place)
            fewer = self._without([first], lanes)
            least = self._without(others, fewer)
            if len(least) == len(fewer) < len(lanes):
                for other in others:
                    least = self._without([other], least)
            lanes = least
        return lanes

    def _without(self, some: Sequence[Lane], lanes: Sequence[Lane]) -> Sequence[Lane]:
        """Return the lanes of a tie without some of them if the shapes are right then, else all."""
        fewer = [lane for lane in lanes if lane not in some]
        alone = not some or len(fewer) < 2
        return lanes if alone or not self._works(fewer, values=False) else fewer

    def _works(self, lanes: Sequence[Lane], *, values: bool = True) -> bool:
        """Return whether lanes can keep the same fraction, tried at two."""
        tie = self._joined(lanes)
        if gcd(*(self.groups[name].size for name in tie)) == 1:
            return False
        return all(self.fault([tie], amount, values=values) is None for amount in (0.5, 0.8))

    def _joined(self, lanes: Sequence[Lane], enter: bool = False) -> Lane:
        tie = tuple(name for name in self.groups if any(name in lane for lane in lanes))
        if enter:
            self.lanes = [lane for lane in self.lanes if lane not in lanes]
            self.lanes.append(tie)
        return tie

    def _removable_blocks(self) -> tuple[str, ...]:
        """Return the residual blocks without which the model still runs."""

        def fails(blocks: tuple[str, ...]) -> bool:
            return self.exact.fault(self.setting.settled(), {}, blocks) is not None

        if not self.graph.blocks or not fails(self.graph.blocks):
            return self.graph.blocks
        return tuple(block for block in self.graph.blocks if not fails((block,)))


def _amount(place: int, shift: int) -> float:
    """Return how much stays of the lane at a place: of up to 125 lanes no two keep the same share at all shifts."""
    count = len(AMOUNTS)
    return AMOUNTS[(place * (shift + 1) + 2 * shift + (place // count**shift if shift else 0)) % count]


def _related(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") or not a or not b
