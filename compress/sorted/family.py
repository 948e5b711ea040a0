"""A family: the nested sub-networks of one training, what each is worth and costs, and the best within a budget."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from compress.core.atomic import replacing, write_json
from compress.core.config import Config
from compress.core.errors import InputError, reason_of
from compress.core.problems import validated
from compress.sorted.budget import COSTS, Budget, Limit
from spaces.architecture import Architecture, Choice

FOLDER, INDEX = "family", "family.json"
WEIGHTS = "supernet"
"""Folder of the full network as a bundle, its units in order."""
NORMS = "norms.safetensors"
"""Batch-norm statistics by member: `3.layer1.0.bn1.running_mean`."""


@dataclass(frozen=True)
class Member:
    """One sub-network of a family.

    Attributes:
        arch: its choices in the family's space.
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

        Latency is the median time in ms, of the processor where the machine was busy with other work meanwhile.
        """
        if key == "size":
            return self.onnx_bytes
        if key != "latency":
            return self.macs if key == "macs" else self.params
        times = self.latency_ms
        if times is None:
            return None
        by_processor = times["contended"] and times["threads"] == 1 and times["cpu_p50"]
        return float(times["cpu_p50"] if by_processor else times["p50"])

    def to_dict(self) -> dict[str, Any]:
        """Return the member as its entry of family.json."""
        return {**asdict(replace(self, arch=Architecture({}))), "arch": dict(self.arch)}


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


class _Latency(Config):
    """METRICS.latency_ms of a member."""

    p10: float
    p50: float = Field(gt=0)
    p90: float
    p99: float
    min: float
    cpu_p50: float | None
    runs: int
    threads: int
    batch: int
    provider: str
    contended: bool


class _MemberRecord(Config):
    arch: dict[str, bool | int | float | str]
    params: int = Field(ge=1)
    macs: int = Field(ge=1)
    onnx_bytes: int | None = Field(ge=1)
    latency_ms: _Latency | None
    metrics: dict[str, Annotated[float, Field(allow_inf_nan=False)] | None]
    full: bool


class _SpaceRecord(Config):
    name: str
    options: dict[str, Any]


class _TaskRecord(Config):
    name: str
    main_metric: str
    direction: Literal["maximize", "minimize"]


class _Index(Config):
    """The content of family.json."""

    schema_version: Literal[1] = Field(alias="schema")
    space: _SpaceRecord
    task: _TaskRecord
    weights: str
    members: list[_MemberRecord] = Field(min_length=1)
    front: list[int]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(member.full for member in self.members) != 1:
            raise ValueError("members: exactly one of them is the full network")
        if not all(0 <= place < len(self.members) for place in self.front):
            raise ValueError(f"front: places of members from 0 to {len(self.members) - 1}; got {self.front}")
        return self


@dataclass(frozen=True)
class Family:
    """The members of one sorted training, in the folder family/ of its run.

    Attributes:
        folder: where it lies; `compress.sorted.networks` makes networks of what else is there.
        space: the name of the space whose architectures the members are.
        options: of that space, without its model, which is the full network.
        main: what members are chosen by.
        members: the full network is one of them.
        weights: stands for the weights and the batch-norm statistics.
    """

    folder: Path
    space: str
    options: Mapping[str, Any]
    main: MainMetric
    members: tuple[Member, ...]
    weights: str

    @property
    def full(self) -> Member:
        """The network that all others are parts of."""
        return next(member for member in self.members if member.full)

    @property
    def front(self) -> tuple[int, ...]:
        """The places of all members that are the best within some limit of one cost, the fewest MACs first."""
        return front_of(self.members, self.main.score)

    @classmethod
    def load(cls, path: str | Path) -> Family:
        """Read the index of the family in the run `path`, or in the folder family/ itself.

        Raises:
            InputError: there is none, it is damaged, or the weights beside it are others.
        """
        path = Path(path)
        folder = next((each for each in (path / FOLDER, path) if (each / INDEX).is_file()), None)
        if folder is None:
            what = f"holds no {FOLDER}/{INDEX}" if path.is_dir() else "is not a directory"
            raise InputError(f"{path} {what}; name the directory of a run with a section sort")
        index = _read(folder / INDEX)
        family = cls(
            folder=folder,
            space=index.space.name,
            options=index.space.options,
            main=MainMetric(index.task.name, index.task.main_metric, index.task.direction),
            members=tuple(map(_member, index.members)),
            weights=index.weights,
        )
        if digest(folder) != family.weights:
            raise InputError(f"{folder}: the weights are not those that {INDEX} is about; train the family again")
        return family

    def save(self) -> None:
        """Write family.json, atomically; weights and statistics have to be there."""
        write_json(
            self.folder / INDEX,
            {
                "schema": 1,
                "space": {"name": self.space, "options": dict(self.options)},
                "task": {"name": self.main.task, "main_metric": self.main.name, "direction": self.main.direction},
                "weights": self.weights,
                "members": [member.to_dict() for member in self.members],
                "front": list(self.front),
            },
        )

    def within(self, budget: Budget) -> list[int]:
        """Return the places of the members whose costs are known and within the budget, the best first.

        Of equally good members the cheaper one comes first.
        """
        limits = {key: self.limit(key, limit) for key, limit in budget.limits.items()}
        fits = [place for place, member in enumerate(self.members) if _fits(member, limits)]
        return sorted(fits, key=self.rank)

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
                f"{limit.text!r}; give it with a unit, such as {COSTS[key].example}, or add --measure"
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
            known = [value for member in self.members if (value := member.cost(key)) is not None]
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


def digest(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for the weights and the statistics in the folder of a family.

    Raises InputError where they are not there.
    """
    found = hashlib.sha256()
    for name in (f"{WEIGHTS}/weights.safetensors", NORMS):
        try:
            with (folder / name).open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"{folder / name} cannot be read: {reason_of(error)}") from error
    return found.hexdigest()[:16]


def write_norms(folder: Path, norms: Iterable[Mapping[str, Any]]) -> None:
    """Write the batch-norm statistics of the members, in their order, atomically."""
    from safetensors.torch import save_file

    tensors = {f"{place}.{name}": value for place, of in enumerate(norms) for name, value in of.items()}
    with replacing(folder / NORMS) as temporary:
        save_file(tensors, temporary)


def _fits(member: Member, limits: Mapping[str, float]) -> bool:
    costs = ((member.cost(key), most) for key, most in limits.items())
    return all(cost is not None and cost <= most * (1 + 1e-9) for cost, most in costs)


def _member(record: _MemberRecord) -> Member:
    choices: dict[str, Choice] = dict(record.arch)
    latency = None if record.latency_ms is None else record.latency_ms.model_dump()
    return Member(
        Architecture(choices), record.params, record.macs, record.metrics, record.full, record.onnx_bytes, latency
    )


def _read(path: Path) -> _Index:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {reason_of(error)}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise InputError(f"{path} is no index of a family: it has no schema")
    try:
        return validated(_Index, content)
    except InputError as error:
        raise InputError(f"{path} is no index of a family: {'; '.join(error.problems)}") from error
