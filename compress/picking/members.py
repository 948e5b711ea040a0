"""Models of several sizes: what each is worth and costs, and the best of them within a budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from compress.core.errors import InputError
from compress.picking.budget import COSTS, Budget, Limit
from evaluators.latency.statistic import by_cpu_time
from spaces.architecture import Architecture

if TYPE_CHECKING:
    from compress.bundle import Bundle


@dataclass(frozen=True)
class Member:
    """One of several models.

    Attributes:
        arch: what tells it from the others: its choices in a family's space, or the budget that it was pruned to.
        params: its parameters.
        macs: multiply-accumulates for one image.
        metrics: the task's, on the test images.
        full: whether it is the network that all others are parts of.
        onnx_bytes: size of its ONNX file; None where it was not written.
        latency_ms: of that file, as in METRICS of report.json; None where it was not measured.
    """

    arch: Architecture
    params: int
    macs: int
    metrics: Mapping[str, float | None]
    full: bool = False
    onnx_bytes: int | None = None
    latency_ms: Mapping[str, Any] | None = None

    def cost(self, key: str) -> float | None:
        """Return a cost (a key of `COSTS`); None where it is not known.

        Latency is the median time in ms, of CPU time where `by_cpu`.
        """
        if key == "size":
            return self.onnx_bytes
        if key != "latency":
            return self.macs if key == "macs" else self.params
        times = self.latency_ms
        if times is None:
            return None
        return float(times["cpu_p50" if self.by_cpu else "p50"])

    @property
    def by_cpu(self) -> bool:
        """Whether the latency is CPU time, since the machine was busy with other work meanwhile."""
        return self.latency_ms is not None and by_cpu_time(self.latency_ms)

    def shown(self, key: str) -> str | None:
        """Return a cost as people read it; None where it is not known."""
        value = self.cost(key)
        if value is None:
            return None
        return COSTS[key].show(value) + (" of CPU time" if key == "latency" and self.by_cpu else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the member as its entry of family.json and pick.json."""
        return {**asdict(replace(self, arch=Architecture({}))), "arch": dict(self.arch)}

    def measured(self) -> dict[str, Any]:
        """Return what METRICS of its bundle have beside costs that are counted."""
        known = {"onnx_bytes": self.onnx_bytes, "latency_ms": self.latency_ms}
        return {**self.metrics, "onnx_parity_max_rel": None, **known}


@dataclass(frozen=True)
class MainMetric:
    """The figure that members are chosen by: its task, its name, and which way it is better."""

    task: str
    name: str
    direction: Literal["maximize", "minimize"]

    def score(self, member: Member) -> float:
        """Return what is larger the better `member` is."""
        value = member.metrics.get(self.name)
        if value is None:
            return -math.inf
        return value if self.direction == "maximize" else -value


@dataclass(frozen=True)
class Written:
    """An ONNX file of a member: its size, and by how much its outputs differ from the model's, of the largest."""

    bytes: int
    parity_max_rel: float


class Models(Protocol):
    """The models of some members."""

    def member(self, place: int) -> Bundle:
        """Return a member as a bundle of its own.

        Raises:
            InputError: the index is not about these weights.
            CompressError: the network is another one than the index tells of.
        """

    def write(self, place: int, bundle: Bundle, path: Path) -> Written:
        """Write the ONNX file of a member, which `bundle` is, to `path`, checked against it.

        Raises as `member`, and CompressError where it could not be exported.
        """


class Members(ABC):
    """Models of several sizes and what they are chosen by.

    Attributes:
        kind: what they are called together; pick.json has the folder under it.
        measurable: whether members can be timed afterwards.
        folder: where they lie.
        main: what members are chosen by.
        members: all of them.
    """

    kind: ClassVar[str]
    measurable: ClassVar[bool]
    folder: Path
    main: MainMetric
    members: tuple[Member, ...]

    @property
    @abstractmethod
    def full(self) -> Member:
        """The network that fractions are of; it need not be one of the members."""

    @property
    @abstractmethod
    def picks(self) -> Path:
        """The folder that picks go to if nothing else is said."""

    @property
    def front(self) -> tuple[int, ...]:
        """The places of all members that are the best within some limit of one cost, the fewest MACs first."""
        return front_of(self.members, self.main.score)

    def within(self, budget: Budget) -> list[int]:
        """Return the places of the members whose costs are known and within the budget, the best first.

        Of equally good members the cheaper one comes first.
        """
        limits = {key: self.limit(key, limit) for key, limit in budget.limits.items()}

        def fits(place: int) -> bool:
            costs = ((self._spent(place, key, budget.limits[key]), most) for key, most in limits.items())
            return all(cost is not None and cost <= most * (1 + 1e-9) for cost, most in costs)

        return sorted(filter(fits, range(len(self.members))), key=self.rank)

    def latency_share(self, place: int) -> float | None:
        """Return what share of the full network's latency a member was measured to take, in turns with it, if it was.

        None: the share is that of both times.
        """
        return None

    def _spent(self, place: int, key: str, limit: Limit) -> float | None:
        """Return what a member takes of a cost that is limited so, in the cost's own unit; None where it is unknown."""
        share = self.latency_share(place) if limit.fraction and key == "latency" else None
        whole = self.full.cost(key)
        return self.members[place].cost(key) if share is None or whole is None else share * whole

    def rank(self, place: int) -> tuple[float, ...]:
        """Return what is smaller the better a member is; in doubt the cheaper one."""
        member = self.members[place]
        latency = member.cost("latency")
        return -self.main.score(member), member.macs, math.inf if latency is None else latency, member.params, place

    def limit(self, key: str, limit: Limit) -> float:
        """Return the most that may be spent, in the cost's own unit; InputError for a fraction of what is not known."""
        if not limit.fraction:
            return limit.value
        whole = self.full.cost(key)
        if whole is None:
            raise InputError(
                f"--{key}  a fraction of the full network's {COSTS[key].title}, which was not measured; got "
                f"{limit.text!r}; give it with a unit, such as {COSTS[key].example}"
                + (", or add --measure" if self.measurable else "")
            )
        return limit.value * whole

    def best(self, budget: Budget) -> int:
        """Return the place of the best member within the budget; a cost that is not known is within none.

        Raises:
            InputError: no member is; it says what the smallest costs.
        """
        found = self.within(budget)
        if not found:
            raise InputError(*self._too_small(budget))
        return found[0]

    def _too_small(self, budget: Budget) -> list[str]:
        """Return why no member is within the budget: for every cost what the smallest takes."""
        problems = []
        for key, limit in budget.limits.items():
            cost, most = COSTS[key], self.limit(key, limit)
            places = range(len(self.members))
            known = [value for place in places if (value := self._spent(place, key, limit)) is not None]
            if not known:
                problems.append(f"--{key}  no member's {cost.title} was measured; add --measure")
            elif min(known) > most:
                of = "members" if len(known) == len(self.members) else f"{len(known)} members that were measured"
                share = min(known) / known_full if (known_full := self.full.cost(key)) else None
                told = cost.show(min(known)) + (f" ({share:.3f} of the full network's)" if share else "")
                problems.append(f"--{key}  no member is within {limit.text}; the smallest of the {of} takes {told}")
        if problems:
            return problems
        first, *_ = budget.limits
        alone = self.members[min(self.within(Budget({first: budget.limits[first]})), key=self._size)]
        costs = ", ".join(f"{COSTS[key].show(value)}" for key in COSTS if (value := alone.cost(key)) is not None)
        return [f"no member is within {budget.text} together; the smallest within --{first} alone takes {costs}"]

    def _size(self, place: int) -> int:
        return self.members[place].macs


def front_of(members: Sequence[Member], score: Callable[[Member], float]) -> tuple[int, ...]:
    """Return the places of members that are the best within some limit of one cost, the fewest MACs first."""
    found: set[int] = set()
    for key in COSTS:
        known = [(value, -score(member), place) for place, member in enumerate(members)
                 if (value := member.cost(key)) is not None]  # fmt: skip
        least = math.inf
        for _, loss, place in sorted(known):
            if loss < least:
                least = loss
                found.add(place)
    return tuple(sorted(found, key=lambda place: (members[place].macs, members[place].params, place)))
