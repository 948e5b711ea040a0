"""Layers that read a width: a convolution or linear layer as the matrix that it multiplies what it reads by.

A layer's *rows* are its output positions: tokens of a linear layer, pixels of every map of a convolution, counted image
by image. At each row it reads `columns` (groups, d), d = inputs of a group x kernel size, in the order of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

LIMIT = 5000
"""Inputs above which a full second-moment matrix (d x d in float64: 200 MB) is not formed."""


Reader = nn.Linear | _ConvNd


def readers(model: nn.Module) -> dict[str, Reader]:
    """Return the layers that multiply what they read by a plain weight: linear layers and convolutions, by name."""
    return {name: module for name, module in model.named_modules() if is_reader(module)}


def is_reader(module: nn.Module) -> TypeGuard[Reader]:
    """Return whether a module is a linear layer or a convolution (not a transposed one) whose weight is plain."""
    plain = isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd)
    return plain and isinstance(module._parameters.get("weight"), Tensor)


def reader(model: nn.Module, name: str) -> Reader:
    """Return the layer of this name, which is one that reads."""
    layer = model.get_submodule(name)
    if not is_reader(layer):
        raise ValueError(f"{name!r} is no linear layer or convolution with a plain weight")
    return layer


def groups_of(layer: Reader) -> int:
    """Return in how many groups a layer reads its inputs."""
    return layer.groups if isinstance(layer, _ConvNd) else 1


def matrix(layer: Reader) -> Tensor:
    """Return the weight as float64 (groups, outputs of a group, d)."""
    weight = layer.weight.detach().double()
    return weight.reshape(groups_of(layer), -1, weight[0].numel())


def count_rows(layer: Reader, output: Tensor) -> int:
    """Return the number of rows of an output."""
    return output.numel() // max(1, output.shape[1 if isinstance(layer, _ConvNd) else -1])


def drawn_rows(rows: int, wanted: int, seed: int) -> Tensor:
    """Return `wanted` of so many rows, drawn at random and sorted; all of them where there are no more."""
    if wanted >= rows:
        return torch.arange(rows)
    generator = Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:wanted].sort().values


def at_rows(layer: Reader, output: Tensor, rows: Tensor) -> Tensor:
    """Return the outputs (rows, channels) of a layer at some rows."""
    if not isinstance(layer, _ConvNd):
        return output.reshape(-1, output.shape[-1])[rows]
    maps = output.flatten(2)
    return maps[rows // maps.shape[2], :, rows % maps.shape[2]]


def flat_places(layer: Reader, shape: torch.Size, rows: Tensor) -> Tensor:
    """Return where in an output of this shape, counted element by element, the values at some rows lie (rows, C)."""
    if not isinstance(layer, _ConvNd):
        return rows[:, None] * shape[-1] + torch.arange(shape[-1], device=rows.device)
    size = prod(shape[2:])
    channels = torch.arange(shape[1], device=rows.device)
    return ((rows // size)[:, None] * shape[1] + channels) * size + (rows % size)[:, None]


def columns(layer: Reader, inputs: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """Return what a layer read at some rows of its output, (rows, groups, d), as it came (im2col at these rows)."""
    if not isinstance(layer, _ConvNd):
        return inputs.reshape(-1, 1, inputs.shape[-1])[rows]
    padded = _padded(layer, inputs, output)
    sizes = output.shape[2:]
    image, at = rows // prod(sizes), torch.unravel_index(rows % prod(sizes), sizes)
    starts = [place * stride for place, stride in zip(at, layer.stride, strict=True)]
    last = padded.movedim(1, -1)
    taken = [
        last[(image, *(start + shift for start, shift in zip(starts, shifts, strict=True)))]
        for shifts in _shifts(layer)
    ]
    read = torch.stack(taken, dim=2)  # (rows, channels, kernel)
    return read.reshape(len(rows), layer.groups, -1)


def _shifts(layer: _ConvNd) -> Iterator[tuple[int, ...]]:
    grid = torch.cartesian_prod(
        *(torch.arange(size) * step for size, step in zip(layer.kernel_size, layer.dilation, strict=True))
    )
    return (tuple(map(int, shifts)) for shifts in grid.reshape(-1, len(layer.kernel_size)).tolist())


def _padded(layer: _ConvNd, inputs: Tensor, output: Tensor) -> Tensor:
    """Return a convolution's input with its padding; TensorFlow's, which timm has, depends on the size of the input."""
    if type(layer).__name__ == "Conv2dSame":
        pads: list[int] = []
        for size, out, stride, kernel, dilation in zip(
            inputs.shape[2:], output.shape[2:], layer.stride, layer.kernel_size, layer.dilation, strict=True
        ):
            missing = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
            pads = [missing // 2, missing - missing // 2, *pads]
        return F.pad(inputs, pads)
    if not any(layer._reversed_padding_repeated_twice):
        return inputs
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)


def features(layer: Reader, read: Tensor) -> Tensor:
    """Return what is fitted to of what was read (rows, groups, d): all of it where d is small.

    Else the mean of each channel over the kernel (rows, groups, channels), or nothing where those are too many as well.
    """
    channels = layer.weight.shape[1]
    if read.shape[2] <= LIMIT:
        return read
    return read.unflatten(2, (channels, -1)).mean(3) if channels <= LIMIT else read[..., :0]


def spread(layer: Reader, change: Tensor) -> Tensor:
    """Return the change of a weight (groups, outputs, d) that is `change` of its features."""
    inputs = layer.weight[0].numel()
    if not change.shape[2]:
        return change.new_zeros(*change.shape[:2], inputs)
    kernel = inputs // change.shape[2]
    return (change / kernel).repeat_interleave(kernel, 2)


def reproduces(layer: Reader, read: Tensor, found: Tensor) -> bool:
    """Return whether weight and bias, times what was read (rows, groups, d), give what the layer gave (rows, C).

    It does not where a layer changes its weight in the forward pass, or pads in a way of its own.
    """
    made = torch.einsum("ngd,god->ngo", read.double(), matrix(layer)).flatten(1)
    if layer.bias is not None:
        made = made + layer.bias.detach().double()
    scale = found.abs().amax().clamp(min=1e-6)
    tolerance = 1e-3 if found.dtype in (torch.float32, torch.float64) else 5e-2
    return made.shape == found.shape and bool(((made - found).abs().amax() / scale) < tolerance)
