"""Quick compensation of one change at a time, from statistics of the dense model that are collected once.

Where units go, the layers that read them are solved for what they gave with all of them; where a block goes, the layer
that feeds it (the last one before) is solved for the sum that the block would have left. With G = X X^T / n of what a
layer reads, a row of ones among it, K what stays and R what goes, the change of the weights is the least-squares one
for the residual W_R X_R (see `compress.prune.compensation.solve`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.core.modes import evaluating
from compress.core.progress import track
from compress.criteria.consumers import LIMIT, columns, count_rows, drawn_rows, flat_places, groups_of, matrix, readers
from compress.graph.graph import Graph, inside
from compress.graph.plan import Plan
from compress.prune.compensation.flow import Flow, Trail, Ways, ways_of
from compress.prune.compensation.solve import solve
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task

ROWS = 24  # of the output of a layer, drawn at random, for each sample


@dataclass
class _Sums:
    """Sums over rows of one layer: of what it reads, and for a block it feeds of what the block adds."""

    gram: Tensor
    rows: int = 0
    cross: Tensor | None = None
    energy: float = 0.0


@dataclass
class _Fed:
    """A feeding layer's rows of one batch, kept until the block has run."""

    read: Tensor
    places: Tensor
    shape: torch.Size
    left: Tensor


class Statistics:
    """What the layers of a dense model read, and what its blocks add to the sums that they lie in.

    Args:
        dense: the model.
        graph: its groups and removable blocks.
        batches: on the model's device.
        task: says how the model is called.
    """

    def __init__(self, dense: nn.Module, graph: Graph, batches: Iterable[Batch], task: Task) -> None:
        self.dense = dense
        batches = list(batches)
        layers = readers(dense)
        with evaluating(dense):
            self.ways = ways_of(dense, graph.blocks, lambda model: task.forward(model, batches[0].part(0, 2)))
        once = {name for name in layers if self.ways.calls[name] == 1 and groups_of(layers[name]) == 1}
        normalised = {part.tensor for group in graph.groups if group.normalised for part in group.slices}
        read = {
            part.layer
            for group in graph.groups
            for part in group.slices
            if part.role == "in" and part.dim == 1 and part.tensor not in normalised and part.tensor.endswith(".weight")
        }
        self.feeds = _feeders(self.ways, graph.blocks, once)
        wanted = (read | set(self.feeds.values())) & once
        self.wanted = {name for name in wanted if matrix(layers[name]).shape[2] < LIMIT}
        self.sums: dict[str, _Sums] = {}
        self._collect(batches, task)

    def repair(self, small: nn.Module, plan: Plan) -> None:
        """Change the weights of what reads removed units, and of what feeds removed blocks (a single one)."""
        for name in self.wanted:
            kept = plan.kept.get(f"{name}.weight", {})
            if 1 in kept and not inside(name, plan.dropped):
                self._repair_reader(small.get_submodule(name), name, kept)
        for block in plan.dropped:
            if self.feeds.get(block) in self.wanted and len(plan.dropped) == 1:
                self._repair_feeder(small.get_submodule(self.feeds[block]), self.feeds[block], block)

    def _repair_reader(self, layer: nn.Module, name: str, kept: dict[int, tuple[int, ...]] | object) -> None:
        assert isinstance(kept, dict)
        weight = self.dense.get_submodule(name).weight.detach().double()  # type: ignore[union-attr, operator]
        if 0 in kept:
            weight = weight[torch.tensor(kept[0], device=weight.device)]
        outputs, inputs = weight.shape[:2]
        size = weight[0, 0].numel()
        columns_ = torch.arange(inputs * size, device=weight.device).reshape(inputs, size)
        stays = torch.zeros(inputs, dtype=torch.bool, device=weight.device)
        stays[torch.tensor(kept[1], device=weight.device)] = True
        keep, gone = columns_[stays].flatten(), columns_[~stays].flatten()
        one = torch.tensor([inputs * size], device=weight.device)
        sums = self.sums[name]
        gram = sums.gram / sums.rows
        basis = torch.cat([keep, one])
        lost = weight.reshape(outputs, -1)[:, gone]
        cross = lost @ gram[gone][:, basis]
        energy = float(((lost @ gram[gone][:, gone]) * lost).sum())
        change = solve(gram[basis][:, basis][None], cross[None], energy, bias=True).change[0]
        _add(layer, change)

    def _repair_feeder(self, layer: nn.Module, name: str, block: str) -> None:
        sums = self.sums[f"{name}>{block}"]
        if sums.cross is None:
            return
        n = sums.rows
        change = solve(sums.gram[None] / n, sums.cross[None] / n, sums.energy / n, bias=True).change[0]
        _add(layer, change)

    def _collect(self, batches: list[Batch], task: Task) -> None:
        exits = {self.ways.exits[block][0]: block for block in self.feeds}
        fed: dict[str, _Fed] = {}
        rows_of: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        blocks_of: dict[str, list[str]] = {}
        for block, layer in self.feeds.items():
            blocks_of.setdefault(layer, []).append(block)
        seed = 0

        def ran(name: str, layer: nn.Module, given: Tensor, output: Tensor) -> None:
            if name not in self.wanted:
                return
            rows = drawn_rows(count_rows(layer, output), ROWS * samples, seed).to(output.device)
            read = columns(layer, given, output, rows)[:, 0].double()
            read = torch.cat([read, read.new_ones(len(read), 1)], dim=1)
            sums = self.sums.setdefault(name, _Sums(read.new_zeros(read.shape[1], read.shape[1])))
            sums.gram += read.T @ read
            sums.rows += len(read)
            if name in blocks_of:
                rows_of[name] = read, flat_places(layer, output.shape, rows), rows

        def ended(name: str, how: str, tensor: Tensor, trail: Trail) -> None:
            if name in exits and exits[name] in fed:
                self._add_block(exits[name], fed.pop(exits[name]), tensor)
            for block in blocks_of.get(name, ()):
                if name in rows_of:
                    read, flat, _ = rows_of[name]
                    places = trail.found_at(tensor.shape, flat)
                    if bool((places >= 0).all()):
                        fed[block] = _Fed(read, places, tensor.shape, tensor.flatten()[places].clone())

        flow = Flow(self.dense, (), self.wanted | set(exits), ran, ended)
        with evaluating(self.dense), torch.no_grad(), flow:
            for number, batch in enumerate(track(batches, "collecting statistics")):
                seed, samples = number, len(batch)
                flow.begin()
                fed.clear()
                rows_of.clear()
                task.forward(self.dense, batch)

    def _add_block(self, block: str, fed: _Fed, after: Tensor) -> None:
        name = self.feeds[block]
        scale = self.ways.sums.get(name, self.ways.into.get(name))
        if after.shape != fed.shape or scale is None:
            return
        missing = (after.flatten()[fed.places] - fed.left).double() / scale
        key = f"{name}>{block}"
        gram = self.sums[name].gram
        sums = self.sums.setdefault(key, _Sums(gram))
        cross = missing.T @ fed.read
        sums.cross = cross if sums.cross is None else sums.cross + cross
        sums.energy += float(missing.square().sum())
        sums.rows = self.sums[name].rows


def _feeders(ways: Ways, blocks: Iterable[str], once: set[str]) -> dict[str, str]:
    """Return for each block the layer before it whose output, summed, enters it and could stand for what leaves it."""
    found = {}
    for block in blocks:
        if block in ways.entries and block in ways.exits:
            (before, acts), (after, later) = ways.entries[block], ways.exits[block]
            if acts == later and before in once and inside(after, (block,)) and not inside(before, (block,)):
                found[block] = before
    return found


def _add(layer: nn.Module, change: Tensor) -> None:
    """Add to weight and bias, as new parameters."""
    old = layer.weight
    assert isinstance(old, Tensor)
    weight = old.detach() + change[:, :-1].reshape(old.shape).to(old.dtype)
    bias = change[:, -1].to(old.dtype)
    if isinstance(layer.bias, Tensor):
        bias = layer.bias.detach() + bias
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
