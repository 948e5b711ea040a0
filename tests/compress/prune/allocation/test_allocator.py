"""The allocation against all combinations, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from compress.prune.allocation import allocator, knapsack
from compress.prune.allocation.allocator import Allocator, Summand
from compress.prune.allocation.decisions import Decision
from compress.prune.allocation.knapsack import Item, Knapsack, Stage


class Toy:
    """Stages of residual blocks of one inner width each on streams that may be narrowed, with random times."""

    def __init__(
        self, seed: int, blocks: Sequence[int], streams: bool, levels: int = 3, together: bool = False
    ) -> None:
        draw = np.random.default_rng(seed)
        self.decisions: list[Decision] = []
        self.losses: dict[str, list[float]] = {}
        self.summands: list[Summand] = []
        self.blocks: dict[str, float] = {}
        self.stages: dict[str, tuple[tuple[str, ...], bool]] = {}
        self.together: dict[str, list[float]] = {}
        for number, count in enumerate(blocks):
            stream = f"s{number}:channels"
            if streams:
                self._decide(draw, (stream,), levels, 3.0)
            names = [f"s{number}.{block}" for block in range(count)]
            self.stages[f"s{number}"] = tuple(names), True
            if together:
                most = count - 1  # that may go, as one stays
                self.together[f"s{number}"] = [0.0, *np.sort(draw.uniform(0, 2, most))]
            for name in names:
                inner = f"{name}.conv1:channels"
                self._decide(draw, (inner,), levels, 1.0)
                self.blocks[name] = float(draw.uniform(0.5, 2))
                self._time(draw, (stream, inner) if streams else (inner,), name, levels)
            self._time(draw, (stream,) if streams else (), None, levels)

    def _decide(self, draw: np.random.Generator, groups: tuple[str, ...], levels: int, scale: float) -> None:
        self.decisions.append(Decision(groups, tuple({groups[0]: level + 1} for level in range(levels))))
        self.losses[groups[0]] = [*np.sort(draw.uniform(0, scale, levels - 1))[::-1].tolist(), 0.0]

    def _time(self, draw: np.random.Generator, groups: tuple[str, ...], block: str | None, levels: int) -> None:
        table = np.atleast_1d(draw.uniform(0.1, 1, [levels] * len(groups)))

        def time(widths: Mapping[str, int]) -> float:
            return float(table[tuple(widths[name] - 1 for name in groups) or 0])

        self.summands.append(Summand(groups, block, time))

    def allocator(self) -> Allocator:
        return Allocator(self.summands, self.decisions, self.losses, self.blocks, self.stages, self.together)

    def least_losses(self, times: Sequence[float]) -> list[float]:
        """Return the least loss within each time, of all combinations."""
        best = [np.inf] * len(times)
        options = [range(len(decision.options)) for decision in self.decisions]
        gone = [
            subset
            for subset in itertools.product((False, True), repeat=len(self.blocks))
            if all(
                not all(out for block, out in zip(self.blocks, subset, strict=True) if block in names)
                for names, _ in self.stages.values()
            )
        ]
        for subset, levels in itertools.product(gone, itertools.product(*options)):
            dropped = {block for block, out in zip(self.blocks, subset, strict=True) if out}
            widths: dict[str, int] = {}
            loss = sum(self.blocks[block] for block in dropped)
            loss += sum(lost[len(dropped & set(self.stages[name][0]))] for name, lost in self.together.items())
            for decision, level in zip(self.decisions, levels, strict=True):
                widths |= decision.options[level]
                if decision.name.rpartition(".")[0] not in dropped:
                    loss += self.losses[decision.name][level]
            time = sum(summand.time(widths) for summand in self.summands if summand.block not in dropped)
            best = [min(b, loss) if time <= limit + 1e-12 else b for b, limit in zip(best, times, strict=True)]
        return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("blocks", "streams"), [((3, 2), False), ((2, 1), True), ((2,), True)])
@pytest.mark.parametrize("together", [False, True])
def test_it_is_the_best_of_all_combinations(seed: int, blocks: tuple[int, ...], streams: bool, together: bool) -> None:
    toy = Toy(seed, blocks, streams, together=together)
    found_by = toy.allocator()
    full = sum(s.time({n: 3 for n in s.groups}) for s in toy.summands)
    times = [share * full for share in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)]
    for time, least in zip(times, toy.least_losses(times), strict=True):
        found = found_by.within(time + 1e-12)
        assert (found is None) == (least == np.inf)
        if found is not None:
            assert found.loss == pytest.approx(least, abs=1e-9)
            assert found.time <= time + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("together", [False, True])
def test_a_shorter_time_never_loses_less(seed: int, together: bool) -> None:
    found_by = Toy(seed, (6, 5, 6), streams=False, levels=5, together=together).allocator()
    losses = []
    for time in np.linspace(found_by.least() + 1e-9, 20, 80):
        found = found_by.within(float(time))
        assert found is not None and found.time <= time + 1e-9
        losses.append(found.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


@pytest.mark.parametrize("together", [False, True])
def test_streams_of_many_stages_are_found_by_descent_nearly_as_by_all_settings(
    monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    toy = Toy(1, (2, 2, 2), streams=True, together=together)  # 27 settings of the streams: tried one by one
    full = sum(s.time({n: 3 for n in s.groups}) for s in toy.summands)
    times = [share * full for share in (0.4, 0.5, 0.6, 0.75)]
    exact = [toy.allocator().within(time) for time in times]
    monkeypatch.setattr(allocator, "MOST_SETTINGS", 1)
    for time, best in zip(times, exact, strict=True):
        found = toy.allocator().within(time)
        assert best is not None and found is not None and found.time <= time + 1e-9
        assert best.loss - 1e-9 <= found.loss <= (1.2 if together else 1.1) * best.loss


def test_every_stage_keeps_a_block_unless_it_holds_others() -> None:
    item = Item(np.array([0.0, 1.0]), np.array([0.1, 0.0]), np.array([True, False]))
    free = Knapsack([item, item], [Stage((0, 1))])
    held = Knapsack([item, item], [Stage((0, 1), (np.inf,))])
    assert free.least == 0 and held.least == 1
    assert held.within(0.5) is None
    assert free.within(0.5) == (0.0, 0.2, [0, 0])


def test_many_sums_are_thinned_to_nearly_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rising = [np.append(np.sort(draw.uniform(0, 1, 7)), 1.0) for _ in range(60)]
    items = [Item(times, 1 - losses, np.zeros(8, bool)) for times, losses in zip(rising[:30], rising[30:], strict=True)]
    exact = Knapsack(items, [Stage(tuple(range(30)))])
    monkeypatch.setattr(knapsack, "MOST_SUMS", 500)
    thinned = Knapsack(items, [Stage(tuple(range(30)))])
    for time in (10.0, 15.0, 20.0):
        best, found = exact.within(time), thinned.within(time)
        assert best is not None and found is not None
        assert best[1] <= found[1] <= 1.02 * best[1]
        assert sum(items[place].losses[option] for place, option in enumerate(found[2])) == pytest.approx(found[1])
        assert sum(items[place].times[option] for place, option in enumerate(found[2])) == pytest.approx(found[0])
