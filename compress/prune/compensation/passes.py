"""Passes over the calibration images: what the dense model has where a layer is refitted, what the pruned one reads.

Both look at the same rows of a layer's output, drawn anew for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.criteria.consumers import (
    LIMIT,
    Reader,
    at_rows,
    columns,
    count_rows,
    drawn_rows,
    features,
    flat_places,
    reader,
    reproduces,
)
from compress.prune.compensation.flow import Flow, Trail
from compress.prune.compensation.norms import affine
from compress.prune.compensation.solve import Normal
from compress.prune.compensation.targets import Target

Run = Callable[[nn.Module, int], Any]
"""Calls a model with the batch of this number."""

ROWS = 16_384
ROWS_PER_INPUT = 20


class Done(Exception):
    """All that a pass was made for has been seen."""


class NotPlain(Exception):
    """A layer computes something else than its weight and bias say."""


@dataclass(frozen=True)
class Drawing:
    """How rows are drawn: at least `least` in `batches` together, at random from `seed`."""

    batches: int
    seed: int
    least: int = ROWS

    def rows(self, layer: Reader, name: str, output: Tensor, batch: int) -> Tensor:
        """Return the rows of a batch's output that are looked at."""
        inputs = min(LIMIT, layer.weight[0].numel())
        wanted = -(-max(self.least, ROWS_PER_INPUT * inputs) // self.batches)
        seed = hash_of(name, self.seed, batch)
        return drawn_rows(count_rows(layer, output), wanted, seed).to(output.device)


def hash_of(name: str, *numbers: int) -> int:
    """Return a seed for a layer: the same in every process."""
    total = 0
    for value in (*name.encode(), *numbers):
        total = (total * 1_000_003 + value + 1) % (2**61 - 1)
    return total


@dataclass
class Wanted:
    """What the dense model has at the rows of each layer and batch: (rows, kept outputs), and which rows count."""

    values: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    counts: dict[tuple[str, int], Tensor] = field(default_factory=dict)


def dense_values(
    dense: nn.Module, found: Sequence[Target], sizes: Mapping[str, Reader], run: Run, drawing: Drawing
) -> Wanted:
    """Return what the dense model has where layers are refitted; `sizes` are the small model's layers."""
    wanted = Wanted()
    by_layer = {target.layer: target for target in found}
    sources: dict[str, list[str]] = {}
    for target in found:
        if target.source is not None:
            sources.setdefault(target.source, []).append(target.layer)
    flat: dict[str, Tensor] = {}
    batch = 0

    def keep(name: str, values: Tensor, at: Tensor) -> None:
        there = (at >= 0).all(1)
        wanted.counts[name, batch] = there
        wanted.values[name, batch] = values.flatten()[at[there]]

    def on_output(name: str, layer: Reader, inputs: Tensor, output: Tensor) -> None:
        target = by_layer.get(name)
        if target is None:
            return
        rows = drawing.rows(sizes[name], name, output, batch)
        if target.scale is None:
            values = at_rows(layer, output, rows)
            if target.norm is not None:
                scale, shift = affine(dense.get_submodule(target.norm))
                values = (values.double() * scale + shift).float()
            wanted.values[name, batch] = values if target.kept is None else values[:, target.kept.to(values.device)]
            return
        places = flat_places(layer, output.shape, rows)
        flat[name] = places if target.kept is None else places[:, target.kept.to(places.device)]

    def on_ending(name: str, how: str, tensor: Tensor, trail: Trail) -> None:
        if name in flat:
            flat[name] = trail.found_at(tensor.shape, flat[name])
            if by_layer[name].source is None:
                keep(name, tensor, flat[name])
        for waiting in sources.get(name, ()):
            keep(waiting, tensor, flat[waiting])

    blocks = [block for target in found for block in target.blocks]
    flow = Flow(dense, blocks, [*by_layer, *sources], on_output, on_ending)
    with torch.no_grad(), flow:
        for batch in range(drawing.batches):
            flow.begin()
            flat.clear()
            run(dense, batch)
    return wanted


def normal_equations(small: nn.Module, target: Target, wanted: Wanted, run: Run, drawing: Drawing) -> Normal:
    """Return the normal equations of one layer of the pruned model, of what it reads there now.

    Raises:
        NotPlain: the layer computes something else than its weight and bias say.
    """
    layer = reader(small, target.layer)
    norm = None if target.norm is None else small.get_submodule(target.norm)
    scale, shift = (1.0, 0.0) if norm is None else affine(norm)
    normal = Normal(bias=norm is not None or layer.bias is not None)
    read: Tensor
    flat: Tensor
    batch = 0

    def on_output(name: str, module: Reader, inputs: Tensor, output: Tensor) -> None:
        nonlocal read, flat
        rows = drawing.rows(layer, name, output, batch)
        read = columns(layer, inputs, output, rows)
        if batch == 0 and not reproduces(layer, read, at_rows(layer, output, rows)):
            raise NotPlain
        read = features(layer, read)
        if target.scale is None:
            values = at_rows(layer, output, rows).double() * scale + shift
            normal.add(read, wanted.values[name, batch].double() - values)
            raise Done
        flat = flat_places(layer, output.shape, rows)

    def on_ending(name: str, how: str, tensor: Tensor, trail: Trail) -> None:
        assert target.scale is not None
        there = wanted.counts[name, batch]
        at = trail.found_at(tensor.shape, flat[there])
        missing = wanted.values[name, batch].double() - tensor.flatten()[at].double()
        normal.add(read[there], missing * (scale / target.scale.to(missing.device)))
        raise Done

    flow = Flow(small, target.blocks, [target.layer], on_output, on_ending)
    with torch.no_grad(), flow:
        for batch in range(drawing.batches):
            flow.begin()
            try:
                run(small, batch)
            except Done:
                continue
    return normal
