"""A family: the nested sub-networks of one training, and the index of what each is worth and costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.core.atomic import replacing, write_json
from compress.core.config import Config
from compress.core.errors import InputError, reason_of
from compress.core.problems import validated
from compress.picking.members import MainMetric, Member, Members
from spaces.architecture import Architecture, Choice

FOLDER, INDEX = "family", "family.json"
WEIGHTS = "supernet"
"""Folder of the full network as a bundle, its units in order."""
NORMS = "norms.safetensors"
"""Batch-norm statistics by member: `3.layer1.0.bn1.running_mean`."""


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
class Family(Members):
    """The members of one sorted training, in the folder family/ of its run.

    Attributes:
        folder: where it lies; `compress.sorted.networks` makes networks of what else is there.
        space: the name of the space whose architectures the members are.
        options: of that space, without its model, which is the full network.
        main: what members are chosen by.
        members: the full network is one of them.
        weights: stands for the weights and the batch-norm statistics.
    """

    kind: ClassVar[str] = "family"
    measurable: ClassVar[bool] = True
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
    def picks(self) -> Path:
        """The folder picks of its run."""
        return self.folder.parent / "picks"

    @staticmethod
    def folder_in(path: Path) -> Path | None:
        """Return the folder of the family in the run `path`, or `path` where it is that folder; None without one."""
        return next((each for each in (path / FOLDER, path) if (each / INDEX).is_file()), None)

    @classmethod
    def load(cls, path: str | Path) -> Family:
        """Read the index of the family in the run `path`, or in the folder family/ itself.

        Raises:
            InputError: there is none, it is damaged, or the weights beside it are others.
        """
        path = Path(path)
        folder = cls.folder_in(path)
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
