"""A lookup table of latencies: a network takes as long as its blocks together, and a constant."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.core.atomic import write_json
from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import under, validated
from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.space import Space


@dataclass(frozen=True)
class Row:
    """A block of a network as far as its latency goes: equal rows take equally long.

    Channels and map sides (pixels) are those of its input and its output.
    """

    operation: str
    in_channels: int
    in_size: int
    out_channels: int
    size: int
    stride: int
    params: int
    macs: int

    @property
    def kind(self) -> str:
        """The operation without its expansion ratio: rows of one kind follow one law."""
        return re.sub(r" e[\d.]+", "", self.operation)

    @property
    def work(self) -> tuple[float, ...]:
        """What the latency of a row of one kind grows with: a constant, MACs, input, output, weights (in millions)."""
        read, written = self.in_channels * self.in_size**2, self.out_channels * self.size**2
        return (1.0, self.macs / 1e6, read / 1e6, written / 1e6, self.params / 1e6)


def sizes_of(task: Task) -> dict[str, int]:
    """Return the sizes of a task under the names that files of latencies have for them."""
    return {"num_classes": task.num_outputs, "in_chans": task.in_chans, "img_size": task.img_size}


def rows_of(space: Space, arch: Architecture) -> list[Row]:
    """Return the rows of a network, input first; raises InputError for a space that cannot describe its layers."""
    task = space.task(img_size=space.input_size(arch))
    layers = space.layers(arch, task)
    if layers is None:
        raise InputError(f"space {space.name} does not describe its networks layer by layer, as a latency table needs")
    found = []
    channels, size = task.in_chans, task.img_size
    for layer in layers:
        sizes = (layer.out_channels, layer.size, layer.stride, layer.params, layer.macs)
        found.append(Row(layer.operation, channels, size, *sizes))
        channels, size = layer.out_channels, layer.size
    return found


class Block(Config):
    """A distinct block of the space and what it takes."""

    operation: str
    in_channels: int
    in_size: int
    out_channels: int
    size: int
    stride: int
    params: int
    macs: int
    latency_ms: float
    seen: int = Field(description="in how many of the measured networks it occurs")

    @property
    def row(self) -> Row:
        """The block without its figures."""
        return Row(**self.model_dump(exclude={"latency_ms", "seen"}))


class TableError(Config):
    """How far predictions are from networks that were measured, but not fitted."""

    networks: int
    mean: float = Field(description="mean of |predicted / measured - 1|")
    median: float = Field(description="its median")
    p90: float = Field(description="90 % of the networks are closer than this")
    max: float = Field(description="that of the worst network")
    spearman: float = Field(description="rank correlation of predicted and measured")


class LatencyTable(Config):
    """Content of the JSON file that `compress latency-table` writes; times in ms per batch."""

    schema_version: Literal[1] = Field(1, alias="schema")
    space: str
    options: dict[str, Any]
    num_classes: int
    in_chans: int
    img_size: int
    target: str
    threads: int
    batch: int
    provider: str
    optimization: str
    statistic: str
    environment: dict[str, Any]
    method: str
    networks: int = Field(description="measured networks that the figures were fitted to")
    constant_ms: float
    blocks: list[Block]
    kinds: dict[str, list[float]] = Field(description="kind -> ms per unit of Row.work, for blocks not listed")
    error: TableError

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table; raises InputError where the file is absent or no table."""
        try:
            content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a file of JSON"
            raise InputError(f"latency table {str(path)!r} cannot be read: {reason}") from error
        return validated(cls, content, under(f"latency table {str(path)!r}: "))

    def save(self, path: Path) -> None:
        """Write the table, complete or not at all."""
        write_json(path, self.model_dump(mode="json", by_alias=True))

    def check(self, space: Space) -> None:
        """Raise InputError unless the table is of this space, its options, and networks of its sizes."""
        if space.name != self.space:
            raise InputError(f"the latency table is of space {self.space}; the search is over {space.name}")
        ours = options_of(space)
        for name in sorted({*ours, *self.options}):
            if ours.get(name) != self.options.get(name):
                theirs, wanted = (each.get(name, "its default") for each in (self.options, ours))
                raise InputError(
                    f"the latency table is for space {self.space} with {name} {theirs}, the search for {wanted}; "
                    "measure one with the same options (compress latency-table --preset, --set)"
                )
        task = space.default_task
        for name, size in sizes_of(task).items():
            if size != getattr(self, name):
                raise InputError(
                    f"the latency table is for {name} {getattr(self, name)}, the search for {size}; "
                    f"measure one with compress latency-table --space {space.name} --classes {task.num_outputs} "
                    f"--channels {task.in_chans} --size {task.img_size}"
                )

    def predict(self, space: Space, arch: Architecture) -> float:
        """Return the latency of `arch` in ms per batch; raises InputError for a kind of block not in the table."""
        return self.constant_ms + sum(map(self._row_ms, rows_of(space, arch)))

    def _row_ms(self, row: Row) -> float:
        known = self._known.get(row)
        if known is not None:
            return known
        if row.kind not in self.kinds:
            raise InputError(f"the latency table has no block of the kind {row.kind!r}; measure it with these options")
        return dot(self.kinds[row.kind], row.work)

    @cached_property
    def _known(self) -> Mapping[Row, float]:
        return {block.row: block.latency_ms for block in self.blocks}


def options_of(space: Space) -> dict[str, Any]:
    """Return the options of a space that are not its defaults, as JSON has them."""
    found: dict[str, Any] = space.config.model_dump(mode="json", exclude_defaults=True)
    return found


def dot(costs: Sequence[float], work: Sequence[float]) -> float:
    """Return the sum of products."""
    return sum(cost * amount for cost, amount in zip(costs, work, strict=True))
