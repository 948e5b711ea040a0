"""Whole residual blocks: which of them change the stream least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.modes import evaluating
from compress.graph.graph import row_of


def block_influence(
    model: nn.Module,
    blocks: Sequence[str],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] = lambda model, images: model(images),
) -> dict[str, float]:
    """Return for each residual block the relative change of the stream, ||out - in||^2 / ||out||^2 over all batches.

    It is DIMAP's relative distortion (see `criteria/dimap.py`) one level up: what the stream loses, as a share of its
    energy, when the block becomes the identity. `batches` yields, on the model's device, what `forward`
    calls the model with: images (N, C, H, W), or a task's batches for its `forward`.
    """
    change = dict.fromkeys(blocks, 0.0)
    energy = dict.fromkeys(blocks, 0.0)

    entered: dict[str, Tensor] = {}

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            entered[name] = args[0].double().clone()  # a block may add to its input in place

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            before, after = entered.pop(name), output.double()
            change[name] += (after - before).square().sum().item()
            energy[name] += after.square().sum().item()

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(enter(name)) for name in blocks]
    handles += [model.get_submodule(name).register_forward_hook(leave(name)) for name in blocks]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: change[name] / energy[name] if energy[name] else 0.0 for name in blocks}


def least_influential(influence: dict[str, float], wanted: float) -> tuple[str, ...]:
    """Return the blocks to remove, in the order of the model: a number (>= 1) or a share (< 1) of all.

    Every row of blocks keeps at least one.

    Raises:
        InputError: so many blocks cannot go.
    """
    count = int(wanted) if wanted >= 1 else math.floor(wanted * len(influence))
    left: dict[str, int] = {}
    for name in influence:
        left[row_of(name)] = left.get(row_of(name), 0) + 1
    chosen: set[str] = set()
    for name in sorted(influence, key=lambda n: influence[n]):
        if len(chosen) < count and left[row_of(name)] > 1:
            chosen.add(name)
            left[row_of(name)] -= 1
    if len(chosen) < count:
        raise InputError(
            f"prune.blocks: {count} residual blocks cannot be removed; got {wanted:g}; "
            f"allowed is at most {len(chosen)}, since every row of them keeps one"
        )
    return tuple(name for name in influence if name in chosen)
