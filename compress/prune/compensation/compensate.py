"""Compensation: layers that read less, or what has changed, are refitted front to back to what the dense model has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from compress.core.modes import evaluating
from compress.core.progress import track
from compress.criteria.consumers import reader, spread
from compress.criteria.unit_criterion import Batches
from compress.graph.fold import foldable_pairs
from compress.graph.plan import Plan
from compress.prune.compensation.flow import ways_of
from compress.prune.compensation.norms import folded, settle_norms, write
from compress.prune.compensation.passes import Drawing, NotPlain, Run, dense_values, normal_equations
from compress.prune.compensation.solve import Normal
from compress.prune.compensation.stretches import Relay, stretches_of
from compress.prune.compensation.targets import Target, targets
from evaluators.tasks import Task

ROWS = 32_768
"""Rows that each layer is fitted to at least: layer behind layer is, and what is fitted to chance adds up."""


@dataclass(frozen=True)
class Refit:
    """What became of one layer: mean squares of what was missing at its output (or its sum), before and after."""

    layer: str
    before: float
    after: float
    blocks: tuple[str, ...] = ()


@dataclass
class Compensation:
    """What compensation did: the layers refitted, and the others that read less (or blocks), each with the reason."""

    refits: list[Refit] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    norms_settled: int = 0


def compensated(
    narrowed: nn.Module,
    dense: nn.Module,
    plan: Plan,
    batches: Batches,
    task: Task,
    *,
    device: str = "cpu",
    seed: int = 0,
    held: Collection[str] = (),
    within: Collection[str] | None = None,
) -> Compensation:
    """Refit what reads removed units, in place, layer by layer from front to back.

    A layer whose output goes into a residual sum is fitted to the dense sum less the pruned shortcut, so that each
    block (also one that lost nothing itself) makes up for what earlier ones broke; a run of removed blocks is made up
    for by the layer before it.

    Args:
        narrowed: `apply(plan, dense)`, on `device`; its running statistics are those of the dense model.
        dense: the model before; it stays as it is.
        plan: what made the one of the other.
        batches: yields the calibration images, the same each time.
        task: says how models are called.
        device: where both are.
        seed: of the rows that are drawn.
        held: names of weights that masks hold; their layers stay.
        within: modules; layers that read as much as before are refitted inside them alone, and running statistics of
            batch norms (which nothing here computes with) stay. None: anywhere.
    """
    images = [batch.to(device) for batch in batches()]
    result = Compensation()
    if not images:
        return result
    few = images[0].part(0, 2)

    def run(model: nn.Module, number: int) -> Any:
        return task.forward(model, images[number].mapped(torch.Tensor.clone))

    with evaluating(narrowed), evaluating(dense), torch.no_grad():
        ways = tuple(ways_of(model, plan.dropped, lambda m: task.forward(m, few)) for model in (narrowed, dense))
        norms = dict(foldable_pairs(dense, few.inputs))
        found, result.left = targets(narrowed, dense, plan, (ways[0], ways[1]), norms, held, within)
        relay = Relay(run, len(images), fixed=dense)
        drawing = Drawing(len(images), seed, ROWS)
        for stretch in track(stretches_of(dense, few.inputs, found), "compensating"):
            if stretch.layers and not relay.taken:
                relay.enter(narrowed, stretch)
                relay.enter(dense, stretch)
            for each in _refitted(narrowed, dense, stretch.targets, relay.run(stretch), drawing, result.left):
                result.refits.append(each)
            if stretch.layers:
                relay.leave(narrowed, stretch)
                relay.leave(dense, stretch)
        if within is None:
            result.norms_settled = settle_norms(narrowed, images, task.forward)
    return result


def _refitted(
    small: nn.Module, dense: nn.Module, found: Sequence[Target], run: Run, drawing: Drawing, left: dict[str, str]
) -> Iterator[Refit]:
    """Refit some layers one after the other, and yield what became of each; `left` gets those that cannot be."""
    if not found:
        return
    sizes = {target.layer: reader(small, target.layer) for target in found}
    wanted = dense_values(dense, found, sizes, run, drawing)
    for target in found:
        try:
            normal = normal_equations(small, target, wanted, run, drawing)
        except NotPlain:
            left[target.layer] = "it computes something else than its weight and bias say"
            continue
        yield _refit(small, target, normal)


def _refit(small: nn.Module, target: Target, normal: Normal) -> Refit:
    layer = reader(small, target.layer)
    norm = None if target.norm is None else small.get_submodule(target.norm)
    solution = normal.solved()
    if solution.after < solution.before:
        weight, bias = folded(layer, norm)
        change = solution.change
        added, shift = (change[..., :-1], change[..., -1]) if normal.bias else (change, 0.0)
        write(layer, norm, weight + spread(layer, added), bias + shift)
    return Refit(target.layer, solution.before, solution.after, target.blocks)
