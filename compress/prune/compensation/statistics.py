"""Second moments of the dense model, collected once, from which the repair of any small removal follows at once.

For one group narrowed, or one block removed, what comes before is as it was, so the inputs of the dense model are
those of the pruned one, and least squares needs no further pass over images. Larger removals are repaired front to
back (`compensated`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from compress.core.modes import evaluating
from compress.criteria.consumers import (
    LIMIT,
    Reader,
    at_rows,
    columns,
    flat_places,
    groups_of,
    matrix,
    reader,
    reproduces,
)
from compress.criteria.unit_criterion import Batches
from compress.graph.fold import foldable_pairs
from compress.graph.graph import Graph
from compress.graph.plan import Plan
from compress.prune.compensation.compensate import Compensation, Refit
from compress.prune.compensation.flow import Flow, Trail, Ways, ways_of
from compress.prune.compensation.norms import affine, can_unfold, folded, write
from compress.prune.compensation.passes import Drawing
from compress.prune.compensation.solve import Normal, solve
from compress.prune.compensation.targets import narrowed_readers
from evaluators.tasks import Task


@dataclass
class DenseStatistics:
    """What layers of a dense model read, and what each removable block adds.

    Attributes:
        dense: the model.
        norms: layer -> the batch norm that alone reads it.
        read: layer -> second moments of what it reads (with a one, where it has a bias or a norm).
        blocks: removable block -> (the layer before it, sums of what that layer would have to add in its place).
        left: layers and blocks that are not repaired, and why.
    """

    dense: nn.Module
    norms: dict[str, str] = field(default_factory=dict)
    read: dict[str, Normal] = field(default_factory=dict)
    blocks: dict[str, tuple[str, Normal]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @classmethod
    def collect(
        cls, dense: nn.Module, graph: Graph, batches: Batches, task: Task, *, device: str = "cpu", seed: int = 0
    ) -> Self:
        """Run the dense model once over the calibration images that `batches` yields; it is on `device`."""
        images = [batch.to(device) for batch in batches()]
        found = cls(dense)
        few = images[0].part(0, 2)
        wanted = {part.layer for group in graph.groups for part in group.slices if part.role == "in"}
        with evaluating(dense), torch.no_grad():
            ways = ways_of(dense, graph.blocks, lambda model: task.forward(model, few))
            found.norms = dict(foldable_pairs(dense, few.inputs))
            sources = found._sources(graph.blocks, ways)
            layers = wanted | {before for before, _ in sources.values()}
            watch = _Watch(found, layers & set(ways.order), sources, ways, Drawing(len(images), seed))
            flow = Flow(dense, graph.blocks, [*watch.layers, *(s for _, s in sources.values())], watch.ran, watch.ended)
            with flow:
                for watch.batch, batch in enumerate(images):
                    flow.begin()
                    task.forward(dense, batch.mapped(Tensor.clone))
        return found

    def _sources(self, blocks: Collection[str], ways: Ways) -> dict[str, tuple[str, str]]:
        """Return block -> (the layer before it, the layer in it after which the sum is the block's)."""
        found: dict[str, tuple[str, str]] = {}
        for block in blocks:
            before, after = ways.entries.get(block), ways.exits.get(block)
            if before is None or after is None or before[1] != after[1]:
                self.left[block] = "no layer before it could give the sum that it ends in"
            elif before[0] in ways.sums or before[0] in ways.into:
                found[block] = before[0], after[0]
        return found

    def repair(self, small: nn.Module, plan: Plan) -> Compensation:
        """Refit, in place, what reads the units that `plan` removes from the dense model, and what precedes its blocks.

        `small` is `apply(plan, dense)`; its parameters are replaced, never written to, so they may be shared.
        """
        result = Compensation()
        runs: dict[str, list[str]] = {}
        for block in plan.dropped:
            if block in self.blocks:
                runs.setdefault(self.blocks[block][0], []).append(block)
            else:
                result.left[block] = self.left.get(block, "no statistics of it")
        narrowed = narrowed_readers(small, plan, result.left)
        for layer in dict.fromkeys([*narrowed, *runs]):
            gone = runs.get(layer, [])
            if len(gone) > 1 or layer not in self.read:
                result.left[layer] = self.left.get(layer, "no statistics of it, or of several blocks in a row")
                continue
            extra = self.blocks[gone[0]][1] if gone else None
            result.refits.append(self._refit(small, layer, plan, extra, tuple(gone)))
        return result

    def _refit(self, small: nn.Module, layer: str, plan: Plan, extra: Normal | None, blocks: tuple[str, ...]) -> Refit:
        """Refit one layer: what is missing is what the removed inputs gave, and what a removed block added."""
        module, normal = reader(small, layer), self.read[layer]
        norm = self.norms.get(layer)
        of_small = folded(module, None if norm is None else small.get_submodule(norm))
        of_dense = folded(reader(self.dense, layer), None if norm is None else self.dense.get_submodule(norm))
        dims = plan.kept.get(f"{layer}.weight", {})
        now, before = (self._with_bias(*parts, normal.bias) for parts in (of_small, of_dense))
        rows = torch.tensor(dims.get(0, range(before.shape[0] * before.shape[1])), device=now.device)
        kernel = matrix(module).shape[2] // module.weight.shape[1]
        inputs = torch.tensor(dims.get(1, range((before.shape[2] - normal.bias) // kernel)), device=now.device)
        taken = (inputs[:, None] * kernel + torch.arange(kernel, device=now.device)).flatten()
        if normal.bias:
            taken = torch.cat([taken, taken.new_tensor([before.shape[2] - 1])])
        groups = (rows // before.shape[1]).unique()
        assert normal.gram is not None
        gram = normal.gram[groups] / normal.rows
        missing = before.flatten(0, 1)[rows].reshape(len(groups), -1, before.shape[2])
        missing[..., taken] -= now
        cross = missing @ gram
        energy = float((cross * missing).sum())
        if extra is not None and extra.cross is not None:
            added = (extra.cross / extra.rows).flatten(0, 1)[rows].reshape(cross.shape)
            energy += 2 * float((added * missing).sum()) + extra.energy / extra.rows
            cross = cross + added
        solution = solve(gram[:, taken][..., taken], cross[..., taken], energy, bias=normal.bias)
        if solution.after < solution.before:
            new = now + solution.change
            weight = new[..., :-1] if normal.bias else new
            write(
                module,
                None if norm is None else small.get_submodule(norm),
                weight,
                new[..., -1] if normal.bias else of_small[1],
            )
        return Refit(layer, solution.before, solution.after, blocks)

    @staticmethod
    def _with_bias(weight: Tensor, bias: Tensor, there: bool) -> Tensor:
        return torch.cat([weight, bias[..., None]], dim=2) if there else weight.clone()


class _Watch:
    """Adds up, during the pass over the dense model, what its layers read and its blocks add."""

    def __init__(
        self,
        found: DenseStatistics,
        layers: Collection[str],
        sources: dict[str, tuple[str, str]],
        ways: Ways,
        drawing: Drawing,
    ) -> None:
        self.found, self.drawing, self.batch = found, drawing, 0
        self.layers: dict[str, float | Tensor] = {}
        for name in layers:
            norm, why = found.norms.get(name), None
            if reader(found.dense, name).weight[0].numel() > LIMIT:
                why = f"it reads more than {LIMIT:,} values for each output"
            elif ways.calls[name] > 1:
                why = f"it runs {ways.calls[name]} times in one pass"
            elif norm is not None and not can_unfold(found.dense.get_submodule(norm)):
                why = f"its batch norm {norm} has no scale and shift of its own"
            if why is not None:
                found.left[name] = why
            else:
                self.layers[name] = 1.0 if norm is None else affine(found.dense.get_submodule(norm))[0]
        self.scales = {**ways.into, **ways.sums}
        self.before = {before for before, _ in sources.values() if before in self.layers}
        self.after: dict[str, list[str]] = {}
        for block, (before, after) in sources.items():
            if before in self.before:
                self.after.setdefault(after, []).append(block)
                found.blocks[block] = before, Normal(bias=self._bias(before))
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}

    def _bias(self, name: str) -> bool:
        return name in self.found.norms or reader(self.found.dense, name).bias is not None

    def ran(self, name: str, layer: Reader, inputs: Tensor, output: Tensor) -> None:
        """Add what a layer read."""
        if name not in self.layers:
            return
        rows = self.drawing.rows(layer, name, output, self.batch)
        read = columns(layer, inputs, output, rows)
        if self.batch == 0 and not reproduces(layer, read, at_rows(layer, output, rows)):
            del self.layers[name]
            self.found.left[name] = "it computes something else than its weight and bias say"
            return
        normal = self.found.read.setdefault(name, Normal(bias=self._bias(name)))
        normal.add(read, read.new_zeros(len(rows), groups_of(layer)))
        if name in self.before:
            self._seen[name] = read, flat_places(layer, output.shape, rows)

    def ended(self, name: str, how: str, tensor: Tensor, trail: Trail) -> None:
        """Remember the sum that a layer ends in, and add what a block has put to the one before it."""
        if name in self._seen and name in self.layers:
            at = trail.found_at(tensor.shape, self._seen[name][1])
            self._ends[name] = at, tensor.flatten()[at]
        for block in self.after.get(name, ()):
            before, normal = self.found.blocks[block]
            if before in self.layers:
                at, was = self._ends[before]
                there = (at >= 0).all(1)
                added = tensor.flatten()[at].double() - was.double()
                added *= self.layers[before] / self.scales[before].to(added.device)
                normal.add(self._seen[before][0][there], added[there])
