"""The least loss within a time, over widths of groups and blocks together.

The time is a sum of terms, each over a few widths. What shares no term is decided on its own: a block with the widths
in it, or a few widths around one another, are one item of a knapsack. Widths that too many others share terms with
(streams, and every second layer of a plain chain) are set from outside: over all of their values where these are few;
otherwise along the Lagrangian min loss + mu * time, which falls apart over items (coordinate descent, mu by bisection),
and then by single steps, each with the knapsack solved anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from compress.core.errors import CompressError
from compress.prune.allocation.decisions import Decision, block_of
from compress.prune.allocation.knapsack import Floats, Item, Knapsack, Stage, undominated

MOST_COMBINATIONS = 4096  # of widths in one item
MOST_SETTINGS = 64  # of widths set from outside, tried one by one
BISECTIONS = 24
SWEEPS = 4

Widths = Mapping[str, int]
_NEVER = (math.inf, math.inf, math.inf)


@dataclass(frozen=True)
class Summand:
    """A part of the time: the groups it depends on, the block it goes with, and its time for widths of those groups."""

    groups: tuple[str, ...]
    block: str | None
    time: Callable[[Widths], float]


@dataclass(frozen=True)
class Allocation:
    """Widths of all decided groups, the blocks that go, and the sums of losses and times that they have."""

    widths: Mapping[str, int]
    dropped: tuple[str, ...]
    loss: float
    time: float


@dataclass(frozen=True)
class _Part:
    """Decisions that one item of the knapsack is made of, with the block they lie in."""

    block: str | None
    decisions: tuple[int, ...]


@dataclass(frozen=True)
class _Filled:
    """An item for one setting of the widths from outside; `levels` of its decisions for each option, None: gone."""

    item: Item
    levels: tuple[tuple[int, ...] | None, ...]


class Allocator:
    """The least loss within a time.

    Args:
        summands: of the time.
        decisions: on widths.
        losses: name of a decision -> the loss of each option.
        blocks: removable block -> the loss without it.
        stages: removable blocks of each stage, and whether one of them stays; see `stages_of`.
        together: stage -> what is lost besides where 0, 1, 2, ... of its removable blocks go, if anything.
    """

    def __init__(
        self,
        summands: Sequence[Summand],
        decisions: Sequence[Decision],
        losses: Mapping[str, Sequence[float]],
        blocks: Mapping[str, float],
        stages: Mapping[str, tuple[tuple[str, ...], bool]],
        together: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.summands, self.decisions, self.blocks = tuple(summands), tuple(decisions), dict(blocks)
        self.losses = [np.asarray(losses[decision.name], dtype=np.float64) for decision in decisions]
        owner = {name: place for place, decision in enumerate(decisions) for name in decision.groups}
        self._sees = [tuple(dict.fromkeys(owner[g] for g in s.groups if g in owner)) for s in self.summands]
        self._inside = [block_of(decision.groups, tuple(self.blocks)) for decision in decisions]
        self._outer = self._chosen_outer()
        self._parts = self._separated(self._outer)
        self._of_part = self._assigned()
        self._stages = self._in_stages(stages, together or {})
        self._values: dict[tuple[int, tuple[int, ...]], float] = {}
        self._filled: dict[tuple[int, tuple[int, ...]], _Filled] = {}
        self._knapsacks: dict[tuple[int, ...], Knapsack] = {}

    @property
    def full(self) -> tuple[int, ...]:
        """The levels of the outer decisions that leave everything whole."""
        return tuple(len(self.decisions[place].options) - 1 for place in self._outer)

    def least(self) -> float:
        """Return the least time that was found."""
        settings = {*self._settings(0.0), self._descended(self.full, 1e12)}
        return min(self._base(setting) + self._knapsack(setting).least for setting in settings)

    def within(self, time: float) -> Allocation | None:
        """Return the allocation of the least loss within `time`; None where nothing is so fast."""
        best = self._best(self._settings(time), time)
        if best is None or not self._outer or prod(n + 1 for n in self.full) <= MOST_SETTINGS:
            return None if best is None else best[1]
        for _ in range(SWEEPS):
            better = self._best(_neighbours(best[0], self.full), time)
            if better is None or better[1].loss >= best[1].loss:
                break
            best = better
        return best[1]

    def _best(self, settings: Iterable[tuple[int, ...]], time: float) -> tuple[tuple[int, ...], Allocation] | None:
        """Return the setting of the outer decisions that allows the least loss within `time`, and that allocation."""
        best = None
        for setting in settings:
            found = self._knapsack(setting).within(time - self._base(setting))
            if found is None:
                continue
            loss = found[1] + self._outer_loss(setting)
            if best is None or loss < best[1]:
                best = setting, loss, found
        return None if best is None else (best[0], self._allocation(best[0], best[2][2]))

    def _allocation(self, setting: tuple[int, ...], chosen: Sequence[int]) -> Allocation:
        """Return the allocation with its sums taken anew, from the terms."""
        levels = dict(zip(self._outer, setting, strict=True))
        dropped = []
        loss = self._outer_loss(setting)
        for number, option in enumerate(chosen):
            part, filled = self._parts[number], self._fill(number, setting)
            loss += float(filled.item.losses[option])
            inner = filled.levels[option]
            if inner is None:
                assert part.block is not None
                dropped.append(part.block)
                inner = tuple(len(self.decisions[place].options) - 1 for place in part.decisions)
            levels |= dict(zip(part.decisions, inner, strict=True))
        for stage in self._stages:
            loss += stage.lost(sum(self._parts[number].block not in dropped for number in stage.items))
        time = sum(
            self._value(number, tuple(levels[place] for place in self._sees[number]))
            for number, summand in enumerate(self.summands)
            if summand.block not in dropped
        )
        widths = {n: w for place, level in levels.items() for n, w in self.decisions[place].options[level].items()}
        kept = {name: width for name, width in widths.items() if block_of((name,), dropped) is None}
        return Allocation(kept, tuple(block for block in self.blocks if block in dropped), loss, time)

    # what is decided together

    def _chosen_outer(self) -> tuple[int, ...]:
        """Return the decisions that are set from outside, so that what is left falls apart into small items."""
        outer: set[int] = set()
        while True:
            parts = self._separated(tuple(outer))
            wrong = [part for part in parts if self._mixed(part) or self._combinations(part) > MOST_COMBINATIONS]
            if not wrong:
                return tuple(sorted(outer))
            outer |= {max(part.decisions, key=self._coupling) for part in wrong}

    def _mixed(self, part: _Part) -> bool:
        """Return whether decisions of several blocks, or of a block and outside of it, are in one part."""
        return len({self._inside[place] for place in part.decisions} | {part.block}) > 1

    def _combinations(self, part: _Part) -> int:
        return prod(len(self.decisions[place].options) for place in part.decisions)

    def _coupling(self, place: int) -> tuple[bool, int]:
        """Return how much a decision ties others together: outside of all blocks first, then by those it meets."""
        met = {other for sees in self._sees if place in sees for other in sees}
        return self._inside[place] is None, len(met)

    def _separated(self, outer: Sequence[int]) -> list[_Part]:
        """Return the parts that share no term when the decisions `outer` are set."""
        inner = [place for place in range(len(self.decisions)) if place not in outer]
        names: list[int | str] = [*inner, *self.blocks]
        together = {key: key for key in names}

        def root(key: int | str) -> int | str:
            while together[key] != key:
                key = together[key]
            return key

        for place in inner:
            block = self._inside[place]
            if block is not None:
                together[root(place)] = root(block)
        for number, summand in enumerate(self.summands):
            keys: list[int | str] = [place for place in self._sees[number] if place not in outer]
            if summand.block is not None and summand.block in self.blocks:
                keys.append(summand.block)
            for key in keys[1:]:
                together[root(key)] = root(keys[0])
        groups: dict[int | str, list[int | str]] = {}
        for key in together:
            groups.setdefault(root(key), []).append(key)
        parts = []
        for keys in groups.values():
            blocks = [key for key in keys if isinstance(key, str)]
            parts.append(_Part(blocks[0] if blocks else None, tuple(sorted(k for k in keys if isinstance(k, int)))))
        return parts

    def _assigned(self) -> list[int | None]:
        """Return for each summand the part that it is of; None: it depends on outer decisions alone."""
        by_block = {part.block: number for number, part in enumerate(self._parts) if part.block is not None}
        by_decision = {place: number for number, part in enumerate(self._parts) for place in part.decisions}
        found: list[int | None] = []
        for number, summand in enumerate(self.summands):
            parts = {by_decision[place] for place in self._sees[number] if place in by_decision}
            if summand.block in by_block:
                parts.add(by_block[summand.block])
            if len(parts) > 1:
                raise CompressError(f"a term of the latency model over {', '.join(summand.groups)} is of two blocks")
            found.append(next(iter(parts), None))
        return found

    def _in_stages(
        self, stages: Mapping[str, tuple[tuple[str, ...], bool]], together: Mapping[str, Sequence[float]]
    ) -> list[Stage]:
        by_block = {part.block: number for number, part in enumerate(self._parts) if part.block is not None}
        staged = []
        for name, (blocks, one_stays) in stages.items():
            lost = dict(enumerate(together.get(name, ())))
            besides = [lost.get(len(blocks) - stay, 0.0) for stay in range(len(blocks) + 1)]
            if one_stays:
                besides[0] = math.inf
            while besides and besides[-1] == 0.0:
                besides.pop()
            staged.append(Stage(tuple(by_block[block] for block in blocks), tuple(besides)))
        placed = {place for stage in staged for place in stage.items}
        return [*staged, Stage(tuple(place for place in range(len(self._parts)) if place not in placed))]

    # times and losses for a setting of the outer decisions

    def _value(self, number: int, levels: tuple[int, ...]) -> float:
        """Return the time of a summand for levels of the decisions that it sees."""
        key = number, levels
        if key not in self._values:
            widths = {
                name: width
                for place, level in zip(self._sees[number], levels, strict=True)
                for name, width in self.decisions[place].options[level].items()
            }
            self._values[key] = self.summands[number].time(widths)
        return self._values[key]

    def _base(self, setting: tuple[int, ...]) -> float:
        """Return the time of what depends on the outer decisions alone."""
        levels = dict(zip(self._outer, setting, strict=True))
        return sum(
            self._value(number, tuple(levels[place] for place in self._sees[number]))
            for number, part in enumerate(self._of_part)
            if part is None
        )

    def _outer_loss(self, setting: tuple[int, ...]) -> float:
        return sum(float(self.losses[place][level]) for place, level in zip(self._outer, setting, strict=True))

    def _fill(self, number: int, setting: tuple[int, ...]) -> _Filled:
        """Return the item of a part, without options that another one of it beats."""
        part = self._parts[number]
        mine = [each for each, of in enumerate(self._of_part) if of == number]
        levels = dict(zip(self._outer, setting, strict=True))
        seen = sorted({place for each in mine for place in self._sees[each] if place in levels})
        key = number, tuple(levels[place] for place in seen)
        if key in self._filled:
            return self._filled[key]
        shape = [len(self.decisions[place].options) for place in part.decisions]
        times, losses = np.zeros(shape), np.zeros(shape)
        for each in mine:
            times += self._spread(each, part, levels)
        for axis, place in enumerate(part.decisions):
            losses += self.losses[place].reshape([-1 if at == axis else 1 for at in range(len(shape))])
        flat_times, flat_losses = times.ravel(), losses.ravel()
        best = undominated(flat_times, flat_losses)
        options: list[tuple[int, ...] | None] = [
            tuple(int(level) for level in np.unravel_index(place, shape)) if shape else () for place in best
        ]
        own_times, own_losses = flat_times[best], flat_losses[best]
        gone = np.zeros(len(best), dtype=np.bool_)
        if part.block is not None:
            options = [None, *options]
            own_times, own_losses = np.append(0.0, own_times), np.append(self.blocks[part.block], own_losses)
            gone = np.append(True, gone)
        self._filled[key] = _Filled(Item(own_times, own_losses, gone), tuple(options))
        return self._filled[key]

    def _spread(self, number: int, part: _Part, outer: Mapping[int, int]) -> Floats:
        """Return the times of a summand over all combinations of a part's decisions."""
        sees = self._sees[number]
        axes = [place for place in part.decisions if place in sees]
        ranges = [range(len(self.decisions[place].options)) for place in axes]
        values = np.array(
            [
                self._value(number, tuple({**outer, **dict(zip(axes, levels, strict=True))}[p] for p in sees))
                for levels in itertools.product(*ranges)
            ]
        )
        return values.reshape([len(self.decisions[p].options) if p in axes else 1 for p in part.decisions])

    def _knapsack(self, setting: tuple[int, ...]) -> Knapsack:
        if setting not in self._knapsacks:
            items = [self._fill(number, setting).item for number in range(len(self._parts))]
            self._knapsacks[setting] = Knapsack(items, self._stages)
        return self._knapsacks[setting]

    # settings of the outer decisions

    def _settings(self, time: float) -> set[tuple[int, ...]]:
        """Return settings of the outer decisions to solve the knapsack for."""
        if prod(n + 1 for n in self.full) <= MOST_SETTINGS:
            return set(itertools.product(*(range(n + 1) for n in self.full)))
        low, high = 0.0, 1.0  # of mu, the loss that a unit of time is worth
        found = {self.full}
        setting = self._descended(self.full, high)
        while self._relaxed(setting, high)[1] > time and high < 1e12:
            low, high = high, high * 16
            setting = self._descended(setting, high)
        found.add(setting)
        for _ in range(BISECTIONS):
            mu = (low * high) ** 0.5 if low else high / 16
            starts = [self._descended(start, mu) for start in (self.full, setting)]
            setting = min(starts, key=partial(self._lagrangian, mu))
            if self._relaxed(setting, mu)[1] > time:
                low = mu
            else:
                high = mu
                found.add(setting)
            if low and high / low < 1.01:
                break
        return found

    def _descended(self, setting: tuple[int, ...], mu: float) -> tuple[int, ...]:
        """Return the setting that no change of one outer decision improves: loss + mu * time, items at their best."""
        value = self._relaxed(setting, mu)[0]
        for _ in range(SWEEPS):
            before = value
            for axis, top in enumerate(self.full):
                for level in range(top + 1):
                    other = (*setting[:axis], level, *setting[axis + 1 :])
                    if (found := self._relaxed(other, mu)[0]) < value - 1e-12 * abs(value):
                        setting, value = other, found
            if value == before:
                break
        return setting

    def _lagrangian(self, mu: float, setting: tuple[int, ...]) -> float:
        return self._relaxed(setting, mu)[0]

    def _relaxed(self, setting: tuple[int, ...], mu: float) -> tuple[float, float]:
        """Return the least loss + mu * time for this setting, and the time of it."""
        loss, time = self._outer_loss(setting), self._base(setting)
        for stage in self._stages:
            found = [_least(self._fill(number, setting).item, mu) for number in stage.items]
            going = sorted((gone[0] - stays[0], number) for number, (stays, gone) in enumerate(found))
            values = [stays[0] for stays, _ in found]
            best = sum(values) + stage.lost(len(found)), 0
            total = sum(values)
            for count, (more, _) in enumerate(going, 1):
                total += more
                best = min(best, (total + stage.lost(len(found) - count), count))
            out = {number for _, number in going[: best[1]]}
            chosen = [gone if number in out else stays for number, (stays, gone) in enumerate(found)]
            loss += sum(each[1] for each in chosen) + stage.lost(len(found) - best[1])
            time += sum(each[2] for each in chosen)
        return loss + mu * time, time


def _least(item: Item, mu: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the least loss + mu * time of an item that stays and of one that is gone, with the loss and the time."""
    values = item.losses + mu * item.times
    found = []
    for those in (~item.gone, item.gone):
        at = int(np.where(those, values, np.inf).argmin())
        found.append((float(values[at]), float(item.losses[at]), float(item.times[at])) if those.any() else _NEVER)
    return found[0], found[1]


def _neighbours(setting: tuple[int, ...], full: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the settings that differ by one step of one decision."""
    return [
        (*setting[:axis], setting[axis] + step, *setting[axis + 1 :])
        for axis in range(len(full))
        for step in (-1, 1)
        if 0 <= setting[axis] + step <= full[axis]
    ]
