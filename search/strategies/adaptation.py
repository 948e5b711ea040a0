"""The iterations of NetAdapt: which networks are proposed, and which of them is accepted.

Yang et al. 2018, "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications", algorithm 1, with the
choice of Howard et al. 2019, "Searching for MobileNetV3", section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compress.core.errors import InputError
from search.strategies.sampler import Params

Key = frozenset[tuple[str, Any]]


@dataclass(frozen=True)
class Network:
    """Parameters, what they cost, and the same parameters as something that can be looked up."""

    params: Params
    cost: float
    key: Key


@dataclass(frozen=True)
class Judged:
    """What came of a trial; `score` is larger for the better, None where it was pruned or broke a constraint."""

    number: int
    score: float | None


@dataclass(frozen=True)
class Step:
    """A network on the way from the seed to the target."""

    network: Network
    judged: Judged


@dataclass(frozen=True)
class Progress:
    """How far an adaptation has come.

    Attributes:
        path: the seed and every network that was accepted, in order.
        waiting: networks of this iteration that have not been judged; none are left where the adaptation is over.
    """

    path: tuple[Step, ...]
    waiting: tuple[Network, ...]


class Adaptation:
    """The rules; see `search.strategies.netadapt.NetAdaptSampler` for the arguments."""

    def __init__(
        self,
        choices: Mapping[str, Sequence[Any]],
        cost: Callable[[Params], float],
        *,
        target: float,
        delta: float,
        decay: float,
        select: Literal["ratio", "score"],
        taken: Callable[[Params], Params],
        feasible: Callable[[Params], bool] | None,
    ) -> None:
        self.target, self.delta, self.decay, self.select = target, delta, decay, select
        self._cost, self._taken, self._feasible = cost, taken, feasible
        self._choices = {name: _numbers(name, given) for name, given in choices.items()}
        self._proposals: dict[tuple[Key, int], list[Network]] = {}
        self.widest = self._network({name: given[-1] for name, given in self._choices.items()})

    def proposals(self, current: Network, iteration: int) -> list[Network]:
        """Return the proposals of an iteration (from 0) that starts from `current`."""
        key = (current.key, iteration)
        if key not in self._proposals:
            delta = self.delta * self.widest.cost * self.decay**iteration
            found = (self._narrowed(current, name, delta) for name in current.params)
            self._proposals[key] = [proposal for proposal in found if proposal is not None]
        return self._proposals[key]

    def follow(self, judged: Mapping[Key, Judged], path: Sequence[Step] = ()) -> Progress:
        """Go through the iterations, from the end of `path` on, as far as their networks are judged."""
        steps = list(path)
        if not steps:
            if self.widest.key not in judged:
                return Progress((), (self.widest,))
            steps.append(Step(self.widest, judged[self.widest.key]))
        while steps[-1].network.cost > self.target * self.widest.cost:
            proposals = self.proposals(steps[-1].network, len(steps) - 1)
            waiting = tuple(network for network in proposals if network.key not in judged)
            if waiting:
                return Progress(tuple(steps), waiting)
            accepted = self._accepted(steps[-1], (Step(network, judged[network.key]) for network in proposals))
            if accepted is None:
                break
            steps.append(accepted)
        return Progress(tuple(steps), ())

    def _narrowed(self, current: Network, name: str, delta: float) -> Network | None:
        """Return `current` with the largest choice for `name` that saves `delta`, if there is one."""
        for choice in reversed(self._choices[name]):
            if choice < current.params[name]:
                narrower = self._network({**current.params, name: choice})
                if current.cost - narrower.cost >= delta:
                    return narrower if self._feasible is None or self._feasible(narrower.params) else None
        return None

    def _accepted(self, current: Step, proposals: Iterable[Step]) -> Step | None:
        """Return the best proposal: of equal ones that which saves most; None where all were pruned."""

        def worth(step: Step) -> tuple[float, float]:
            score, cost = step.judged.score, step.network.cost
            assert score is not None
            if self.select == "score" or current.judged.score is None:
                return score, -cost
            return (score - current.judged.score) / (current.network.cost - cost), -cost

        return max((step for step in proposals if step.judged.score is not None), key=worth, default=None)

    def _network(self, params: Params) -> Network:
        params = self._taken(params)
        return Network(params, self._cost(params), key_of(params))


def key_of(params: Params) -> Key:
    """Return parameters as something that can be looked up."""
    return frozenset(params.items())


def _numbers(name: str, choices: Sequence[Any]) -> list[Any]:
    """Return choices from small to large; InputError for such that have no order."""
    for choice in choices:
        if not isinstance(choice, (int, float)):
            raise InputError(
                f"search.strategy: netadapt makes numbers smaller, and the decision {name} of the space is none; got "
                f"the choice {choice!r}; take another strategy or space"
            )
    return sorted(choices)
