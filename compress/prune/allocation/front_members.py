"""The front that a pruning to several budgets has left, read back: its models are members to pick from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from compress.bundle import Bundle, task_in
from compress.core.config import Config
from compress.core.errors import CompressError, InputError, reason_of
from compress.core.onnx_parts import parts
from compress.core.problems import validated
from compress.export.recheck import copied, parity
from compress.picking.members import MainMetric, Member, Members, Written
from compress.prune.allocation.front import FOLDER, INDEX
from spaces.architecture import Architecture

LOSS = MainMetric("", "pruning_loss", "minimize")
"""What members are chosen by where nothing was evaluated: what the pruning took for their loss."""
TIMES = ("p10", "p50", "p90", "p99", "min", "cpu_p50", "runs", "threads", "batch", "provider", "contended")
"""The keys of METRICS.latency_ms."""

Cost = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Row(Config):
    """What is read here of an entry of front/index.json, as `row_of` in `compress.prune.allocation.front` makes it."""

    model_config = ConfigDict(extra="ignore")

    budget: dict[str, Finite] = Field(min_length=1)
    latency: Positive
    latency_ms: Positive
    dense_ms: Positive
    contended: bool
    by_cpu: bool = False
    loss: Finite
    macs: tuple[Cost, Cost]
    params: tuple[Cost, Cost]
    metrics: dict[str, Finite | None]
    bundle: str
    onnx: str


class _Index(Config):
    """The content of front/index.json."""

    budgets: list[_Row] = Field(min_length=1)


@dataclass(frozen=True)
class Front(Members):
    """The models of one pruning to several budgets, in the folder front/ of its stage; they are its `Models`, too.

    Attributes:
        folder: where it lies.
        named: the directory that it was found by, in which picks go.
        main: what members are chosen by.
        members: in the order of the budgets.
        dense: the model before the pruning, which is none of the members.
        files: bundle and ONNX file of each member.
        shares: of the dense latency that each member was measured to take.
    """

    kind: ClassVar[str] = "front"
    measurable: ClassVar[bool] = False
    folder: Path
    named: Path
    main: MainMetric
    members: tuple[Member, ...]
    dense: Member
    files: tuple[tuple[Path, Path], ...]
    shares: tuple[float, ...]

    @property
    def full(self) -> Member:
        """The model before the pruning."""
        return self.dense

    @property
    def picks(self) -> Path:
        """The folder picks of the directory that was named, beside the front where that was named itself."""
        return (self.folder.parent if self.named == self.folder else self.named) / "picks"

    @staticmethod
    def folder_in(path: Path) -> Path | None:
        """Return the folder of the front in `path`: a run (that of its last stage with one), a stage, or the folder."""
        stages = sorted(path.glob(f"stages/*/{FOLDER}"), reverse=True)
        return next((each for each in (path / FOLDER, path, *stages) if (each / INDEX).is_file()), None)

    @classmethod
    def load(cls, path: Path) -> Front:
        """Read the index of the front in `path`, see `folder_in`.

        Raises:
            InputError: there is none, it is damaged, or files that it names are not there.
        """
        folder = cls.folder_in(path)
        if folder is None:
            what = f"holds no {FOLDER}/{INDEX}" if path.is_dir() else "is not a directory"
            raise InputError(f"{path} {what}; name the directory of a run with prune.budgets")
        rows = _read(folder / INDEX)
        files = tuple((folder / row.bundle, folder / row.onnx) for row in rows)
        task = task_in(files[0][0], key=str(folder))
        first = rows[0]
        dense = Member(
            Architecture({}),
            first.params[0],
            first.macs[0],
            {},
            full=True,
            latency_ms=_times(statistics.median(row.dense_ms for row in rows), rows),
        )
        main = MainMetric(task.name, task.main_metric.name, task.main_metric.direction)
        members = tuple(_member(row, task.metrics, onnx) for row, (_, onnx) in zip(rows, files, strict=True))
        if all(member.metrics.get(main.name) is None for member in members):
            main = replace(LOSS, task=task.name)
            members = tuple(
                replace(member, metrics={**member.metrics, main.name: row.loss})
                for row, member in zip(rows, members, strict=True)
            )
        return cls(folder, path, main, members, dense, files, tuple(row.latency for row in rows))

    def latency_share(self, place: int) -> float:
        """Return the share that was measured in turns, by which the budgets were met: times of their own drift."""
        return self.shares[place]

    def member(self, place: int) -> Bundle:
        """Return a member as a bundle of its own; InputError where it is damaged, or not what the index tells of."""
        member, (path, _) = self.members[place], self.files[place]
        bundle = Bundle.load(path, key=str(self.folder))
        costs = bundle.costs()
        if (costs["params"], costs["macs"]) != (member.params, member.macs):
            raise InputError(
                f"{path} has {costs['params']} params and {costs['macs']} MACs, its index says {member.params} and "
                f"{member.macs}: it is another network"
            )
        return replace(bundle, metrics={**member.measured(), **costs})

    def write(self, place: int, bundle: Bundle, path: Path) -> Written:
        """Copy the ONNX file of a member to `path`, held against `bundle`.

        Raises:
            InputError: it cannot be read.
            CompressError: it is another network.
        """
        size = copied(self.files[place][1], path)
        try:
            return Written(size, parity(path, bundle.model, bundle.example_inputs, bundle.task))
        except CompressError as error:
            raise CompressError(f"{self.files[place][1]} is not the file of its bundle: {error}") from error


def _member(row: _Row, metrics: tuple[Any, ...], onnx: Path) -> Member:
    return Member(
        arch=Architecture(row.budget),
        params=row.params[1],
        macs=row.macs[1],
        metrics={metric.name: row.metrics.get(metric.name) for metric in metrics},
        onnx_bytes=sum(file.stat().st_size for file in parts(onnx).values()),
        latency_ms=_times(row.latency_ms, [row]),
    )


def _times(ms: float, rows: Sequence[_Row]) -> Mapping[str, Any]:
    """Return METRICS.latency_ms with the median that the pruning went by, which is all that an index tells.

    Of CPU time where it was so in all `rows`: that is told of one thread of the processor alone.
    """
    found = {**dict.fromkeys(TIMES), "contended": any(row.contended for row in rows)}
    return found | ({"cpu_p50": ms, "threads": 1} if all(row.by_cpu for row in rows) else {"p50": ms})


def _read(path: Path) -> list[_Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {reason_of(error)}") from error
    if not isinstance(content, list):
        raise InputError(f"{path} is no index of a front: it is no list of budgets")
    try:
        return validated(_Index, {"budgets": content}).budgets
    except InputError as error:
        raise InputError(f"{path} is no index of a front: {'; '.join(error.problems)}") from error
