"""How far the outputs of a changed model are from the dense one's, computed from the first changed block on.

Blocks before it would compute what they did in the dense model: the changed block gets what it got there, and residual
blocks before, which keep shapes, are passed by. Where a model does not allow that (what a block gives is read elsewhere
than by the next one), the unchanged model shows it, and the whole is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.copies import copied
from compress.core.modes import evaluating
from compress.graph.apply import fold_batch_norms
from compress.graph.fold import foldable_pairs
from compress.graph.graph import inside
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task

SAME = 1e-3  # largest difference of an unchanged model's outputs, in terms of their spread


class Replay:
    """The dense model's outputs on some batches, and what each residual block was given there.

    Args:
        dense: the model that the others are compared with; it stays as it is.
        batches: on the model's device.
        task: says how the model is called and which tensor its outputs are compared by.
        blocks: residual blocks whose output has the shape of their input, in the order in which they run.
    """

    def __init__(self, dense: nn.Module, batches: Sequence[Batch], task: Task, blocks: Sequence[str]) -> None:
        self.dense, self.task = dense, task
        self.batches = [batch.mapped(_fast) for batch in batches]
        self._folds = _folds(dense, self.batches[0])
        self.place = _order(dense, self.batches[0], task)
        self.blocks = sorted((block for block in blocks if block in self.place), key=lambda block: self.place[block])
        self._quick = self.quick(copied(dense), ())
        with _running(self._quick):
            self.outputs = [self._given(self._quick, batch) for batch in self.batches]
        self.variance = float(torch.cat([each.flatten() for each in self.outputs]).double().var())
        self._entered: tuple[str, list[Tensor]] | None = None
        self._usable: dict[str, bool] = {}

    def error(self, model: nn.Module, start: str | None) -> float:
        """Return mean (z - dense z)^2 / var(dense z) over all outputs.

        Args:
            model: the dense one with changes, `quick` or not; blocks that are gone have something in their place that
                gives its input.
            start: the first block in which it differs; None: it differs before.
        """
        start = start if start is not None and self._can_start(start) else None
        total, count = 0.0, 0
        with _running(model):
            for number, expected in enumerate(self.outputs):
                found = self._from(model, start, number)
                total += float((found.double() - expected.double()).square().sum())
                count += expected.numel()
        return total / count / max(self.variance, 1e-30)

    def quick(self, model: nn.Module, dropped: Sequence[str]) -> nn.Module:
        """Return `model`, a changed dense one that nobody else needs, with its batch norms folded into layers."""
        fold_batch_norms(model, tuple(pair for pair in self._folds if not any(inside(n, dropped) for n in pair)))
        return model.to(memory_format=torch.channels_last) if self._folds else model

    def first_changed(self, changed: Sequence[str]) -> str | None:
        """Return the last block from which on a model can be run that differs from the dense one in these modules."""
        first = min((self.place.get(name, -1) for name in changed), default=-1)
        before = [block for block in self.blocks if self.place[block] <= first]
        return before[-1] if before else None

    def _given(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.tensor(self.task.forward(model, batch)).detach()

    def _from(self, model: nn.Module, start: str | None, number: int) -> Tensor:
        if start is None:
            return self._given(model, self.batches[number].mapped(Tensor.clone))
        with _started(model, self.blocks, start, self._inputs(start)[number]):
            return self._given(model, self.batches[number])

    def _can_start(self, block: str) -> bool:
        """Return whether the dense model gives what it gave when it is run from `block` on."""
        if block not in self._usable:
            few = self.batches[0].part(0, 2)
            with _running(self._quick):
                try:
                    expected = self._given(self._quick, few.mapped(Tensor.clone))
                    with _started(self._quick, self.blocks, block, _entering(self._quick, block, few, self.task)):
                        found = self._given(self._quick, few)
                    near = (found - expected).abs().amax() <= SAME * self.variance**0.5
                    self._usable[block] = found.shape == expected.shape and bool(near)
                except (RuntimeError, TypeError, ValueError, IndexError):  # the model's own, on what it did not expect
                    self._usable[block] = False
        return self._usable[block]

    @torch.no_grad()
    def _inputs(self, block: str) -> list[Tensor]:
        """Return what the dense model gave to `block`; kept until another block is asked for."""
        if self._entered is None or self._entered[0] != block:
            near = self._entered
            if near is not None and (self.place[near[0]] > self.place[block] or not self._usable.get(near[0], False)):
                near = None
            found = []
            for number, batch in enumerate(self.batches):
                with contextlib.ExitStack() as stack:
                    stack.enter_context(evaluating(self._quick))
                    if near is not None:
                        stack.enter_context(_started(self._quick, self.blocks, near[0], near[1][number]))
                    found.append(_entering(self._quick, block, batch, self.task))
            self._entered = block, found
        return self._entered[1]


class _Reached(Exception):
    """Ends a run at the block that was asked for."""


def _entering(model: nn.Module, block: str, batch: Batch, task: Task) -> Tensor:
    """Return the first argument that `block` is called with."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0].clone())
        raise _Reached

    handle = model.get_submodule(block).register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(_Reached):
            task.forward(model, batch)
    finally:
        handle.remove()
    return found[0]


@contextlib.contextmanager
def _started(model: nn.Module, blocks: Sequence[str], start: str, value: Tensor) -> Iterator[None]:
    """Pass by the blocks before `start`, and give it `value`."""
    earlier = [model.get_submodule(block) for block in blocks[: blocks.index(start)]]

    def given(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (value.clone(), *args[1:])

    handle = model.get_submodule(start).register_forward_pre_hook(given)
    for module in earlier:
        module.forward = _first
    try:
        yield
    finally:
        handle.remove()
        for module in earlier:
            del module.forward


def _fast(tensor: Tensor) -> Tensor:
    """Return a tensor in the layout in which convolutions run fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _folds(model: nn.Module, batch: Batch) -> tuple[tuple[str, str], ...]:
    """Return the batch norms that can be folded, with their layers; none for a model called with several inputs."""
    images = batch.part(0, 2).inputs
    return foldable_pairs(model, images) if isinstance(images, Tensor) else ()


def _first(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return value


@contextlib.contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    with evaluating(model), torch.no_grad():
        yield


def _order(model: nn.Module, batch: Batch, task: Task) -> dict[str, int]:
    """Return the place of every module among those that are entered in a forward pass, counted from 0."""
    place: dict[str, int] = {}

    def entered(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            place.setdefault(name, len(place))

        return hook

    handles = [module.register_forward_pre_hook(entered(name)) for name, module in model.named_modules()]
    try:
        with _running(model):
            task.forward(model, batch.part(0, 2))
    finally:
        for handle in handles:
            handle.remove()
    return place
