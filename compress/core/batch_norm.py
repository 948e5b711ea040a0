"""Batch normalisation after surgery: its statistics are those of a network that no longer exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.core.errors import InputError
from compress.core.modes import evaluating
from compress.core.progress import track


def norm_layers(model: nn.Module, frozen: bool = False) -> list[_BatchNorm]:
    """Return the batch normalisations that keep running statistics (timm's BatchNormAct2d and SyncBN are such).

    Those whose own weights are frozen are left out, unless asked for: their statistics mostly belong to weights that do
    not change.
    """
    found = (m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)
    return [m for m in found if frozen or all(parameter.requires_grad for parameter in m.parameters(recurse=False))]


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    limit: int,
    device: str | torch.device = "cpu",
    forward: Callable[[nn.Module, Any], Any] = lambda model, images: model(images),
    frozen: bool = False,
) -> int:
    """Estimate the running means and variances of `model` anew, as plain averages over batches.

    Only batch normalisation runs in training mode (dropout stays off); weights, momenta and modes are as before
    when it ends. Without batches, or when a batch fails, the old statistics stay.

    Args:
        model: on `device`; changed in place.
        batches: tensors, or other batches that `to(device, copy=True)` moves; left as they are.
        limit: most batches to use.
        device: where batches go.
        forward: calls the model with a batch, as `Task.forward` does.
        frozen: whether layers whose weights are frozen get new statistics as well.

    Returns:
        How many batches were used; 0 for a model without batch normalisation.

    Raises:
        InputError: the batches are too small, see `enough_values`.
    """
    layers = norm_layers(model, frozen)
    if not layers or limit <= 0:
        return 0
    used = 0
    with _averaging(model, layers), enough_values():
        for batch in track(islice(batches, limit), "recalibrating batch norm", total=limit):
            if used == 0:
                for layer in layers:
                    layer.reset_running_stats()
            forward(model, batch.to(device, copy=True))  # the model may change it, and who gave it may need it again
            used += 1
    return used


@contextmanager
def enough_values(key: str = "data.batch_size") -> Iterator[None]:
    """Raise an `InputError`, naming the recipe's `key`, where a batch normalisation sees but one value per channel.

    One image, at a layer whose maps are 1x1, has no variance: PyTorch refuses it, in training and (where no running
    statistics are kept) in evaluation.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"{key}: batch norm needs more than one value per channel, and a batch of one image has one "
            "where maps are 1x1; got 1 image; allowed: 2 and up (of as many images)"
        ) from error


@contextmanager
def by_batch(model: nn.Module) -> Iterator[None]:
    """Let batch norms go by what each batch holds inside the block; all else is in evaluation mode.

    Running statistics are afterwards what they were.
    """
    layers = norm_layers(model)
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    try:
        with evaluating(model):
            for layer in layers:
                layer.training = True
            yield
    finally:
        for buffer, old in before:
            buffer.copy_(old)


@contextmanager
def statistics_kept(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let `layers` in training mode leave their running statistics as they are, inside the block."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@contextmanager
def _averaging(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Let `layers` average what they see inside the block; statistics from before return after an error."""
    momenta = [layer.momentum for layer in layers]
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    try:
        with evaluating(model):
            for layer in layers:
                layer.training = True  # not .train(): the activation inside a BatchNormAct2d keeps its mode
                layer.momentum = None  # PyTorch: a cumulative average over batches
            yield
    except BaseException:
        for buffer, old in before:
            buffer.copy_(old)
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
