"""Sizes of a model's input, and whether it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.tensors import named_tensors

Shape = tuple[int, ...]
"""Sizes of an input without its batch: channels, height, width of images; any other number for other data."""


def pair(sides: int | Sequence[int]) -> Shape:
    """Return height and width of `sides`, where one number stands for a square."""
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


def as_argument(sides: Shape | None) -> int | list[int] | None:
    """Return height and width as constructors take them (`img_size`): one number for a square."""
    if sides is None:
        return None
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] else list(sides)


def shown(shape: Sequence[int]) -> str:
    """Return sizes as in 3x224x224."""
    return "x".join(map(str, shape))


def check_forward(module: nn.Module, shape: Shape, name: str, classes: int | None = None) -> int | None:
    """Return the number of logits that `module`, in eval mode, gives for one input of `shape`; None if it gives others.

    Of a tuple the first tensor counts.

    Raises InputError, naming the model `name`, when it fails, when it returns no tensor, or when data of `classes`
    needs logits and it gives none.
    """
    try:
        with torch.no_grad():
            output: Any = module(torch.zeros(1, *shape))
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"model.name: {name!r} fails on an input of {_sizes(shape)}: {reason_of(error)}; "
            "give data.image_size or model.input_size if it takes another"
        ) from error
    found = named_tensors(output, "logits", "output")
    if not found:
        raise InputError(f"model.name: {name!r} returned {type(output).__name__} without any tensor for one input")
    first = output[0] if isinstance(output, tuple | list) else output  # as training and evaluation have it
    if isinstance(first, torch.Tensor) and first.ndim == 2 and first.shape[0] == 1:
        return int(first.shape[1])
    if classes is not None:
        what = ", ".join(f"{key} {shown(value.shape)}" for key, value in found.items())
        what = shown(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__} ({what})"
        raise InputError(
            f"model.name: {name!r} returned {what} for one image; the data has {classes} classes, so logits of shape "
            "(1, classes) are needed; leave the images out with data.name: none"
        )
    return None


def _sizes(shape: Shape) -> str:
    return f"(channels, height, width) {shape}" if len(shape) == 3 else f"sizes {shape}"
