"""Stretches of a model that are run by themselves, so that a layer is refitted without running all that precedes it.

The layers of most models hand one tensor on from the one to the next (`compress.transforms.chain`). What a stretch of
them takes is kept for every batch, of both models; targets outside are reached by running everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.compensation.passes import Done
from compress.prune.compensation.targets import Target
from compress.transforms.chain import longest_chain

Call = Callable[[nn.Module, int], Any]
"""Calls a whole model with the batch of this number."""


@dataclass
class Stretch:
    """Layers in a row and the targets in them, in order; without layers it is the whole model."""

    layers: tuple[str, ...]
    targets: list[Target] = field(default_factory=list)

    def holds(self, name: str) -> bool:
        """Return whether a layer is in the stretch."""
        return any(name == layer or name.startswith(f"{layer}.") for layer in self.layers)


def stretches_of(dense: nn.Module, inputs: Any, found: Sequence[Target]) -> list[Stretch]:
    """Return stretches that hold all targets, in the order in which they run.

    Blocks that were removed are in the stretch of the layer that makes up for them.
    """
    links = longest_chain(dense, inputs) if isinstance(inputs, Tensor) else []
    parts = [Stretch((link.name,)) for link in links]
    joined: list[Stretch] = []
    until = -1
    for place, part in enumerate(parts):
        if place <= until:
            joined[-1].layers += part.layers
        else:
            joined.append(part)
        for target in found:
            if part.holds(target.layer):
                later = [number for number, other in enumerate(parts) for name in target.blocks if _meet(other, name)]
                until = max([until, *later])
    first, last = Stretch(()), Stretch(())
    for target in found:
        home = next((part for part in joined if part.holds(target.layer)), None)
        if home is not None and all(_meet(home, name) for name in target.blocks):
            home.targets.append(target)
        else:
            (last if any(part.targets for part in joined) else first).targets.append(target)
    chained = joined if any(part.targets for part in joined) else []
    return [part for part in (first, *chained, last) if part.layers or part.targets]


def _meet(part: Stretch, block: str) -> bool:
    """Return whether a removed block is in a stretch, or the stretch in the block."""
    return part.holds(block) or any(layer.startswith(f"{block}.") for layer in part.layers)


class Relay:
    """Runs stretches one after the other: keeps what each takes, for every batch, of each model.

    Of the model that is `fixed`, which nothing changes, what a stretch gave is kept for the next.
    """

    def __init__(self, call: Call, batches: int, fixed: nn.Module | None = None) -> None:
        self.call, self.batches, self.fixed = call, batches, fixed
        self.taken: dict[nn.Module, list[Tensor]] = {}
        self.given: dict[int, Tensor] = {}

    def enter(self, model: nn.Module, stretch: Stretch) -> None:
        """Take up a model at its first stretch: run it up to there."""
        caught: list[Tensor] = []

        def catch(module: nn.Module, args: Any) -> None:
            caught.append(args[0].clone())
            raise Done

        handle = model.get_submodule(stretch.layers[0]).register_forward_pre_hook(catch, prepend=True)
        try:
            for batch in range(self.batches):
                try:
                    self.call(model, batch)
                except Done:
                    continue
        finally:
            handle.remove()
        self.taken[model] = caught

    def run(self, stretch: Stretch) -> Call:
        """Return what calls a model's stretch with a batch, by number; without layers, the whole model."""
        if not stretch.layers:
            return self.call

        def run(model: nn.Module, batch: int) -> Tensor:
            passed = self.taken[model][batch].clone()
            for layer in stretch.layers:
                passed = model.get_submodule(layer)(passed)
            if model is self.fixed:
                self.given[batch] = passed
            return passed

        return run

    def leave(self, model: nn.Module, stretch: Stretch) -> None:
        """Go on to the next stretch of a model."""
        run = self.run(stretch)
        with torch.no_grad():
            for batch in range(self.batches):
                known = self.given.pop(batch, None) if model is self.fixed else None
                self.taken[model][batch] = run(model, batch) if known is None else known
        if model is self.fixed:
            self.given.clear()
