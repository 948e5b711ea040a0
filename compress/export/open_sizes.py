"""Which sizes of inputs and outputs a file leaves open: the batch, height and width of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.tensors import Inputs, call, mapped, tensors_in
from compress.export.checks import Check

Axes = dict[int, str]
"""Names of the open dimensions of a tensor."""
SIDES: Axes = {2: "height", 3: "width"}
GROWN = ((32, 64), (17, 9))
"""By how many pixels in height and width images grow that files of open sizes are checked on: as most networks take
them, and as few do."""


def is_image(tensor: Tensor) -> bool:
    """Whether an input (N, C, H, W) holds numbers that can be resized."""
    return tensor.ndim == 4 and tensor.is_floating_point()


def grown(inputs: Inputs, by: tuple[int, int]) -> Inputs:
    """Return `inputs` whose images have `by` (height, width) more pixels."""

    def larger(tensor: Tensor) -> Tensor:
        if not is_image(tensor):
            return tensor
        sides = (tensor.shape[2] + by[0], tensor.shape[3] + by[1])
        return nn.functional.interpolate(tensor, sides, mode="bilinear", align_corners=False)

    return mapped(inputs, larger)  # type: ignore[no-any-return]


def other_sizes(module: nn.Module, example: Inputs) -> list[tuple[int, int]]:
    """Return by what the images may grow, of `GROWN`, so that `module` (in evaluation mode) still takes them.

    Raises:
        InputError: they are no images of one size, or the module takes no other size.
    """
    images = [each for each in tensors_in(example) if is_image(each)]
    sizes = sorted({tuple(each.shape[2:]) for each in images})
    if len(sizes) != 1:
        found = ", ".join(f"{height}x{width}" for height, width in sizes) or "no images (N, C, H, W)"
        raise InputError(f"export.dynamic_size: needs inputs that are images of one size; the model takes {found}")
    taken, reason = [], ""
    for by in GROWN:
        try:
            with torch.no_grad():
                call(module, grown(example, by))
            taken.append(by)
        except Exception as error:  # the module may raise anything
            if is_out_of_memory(error):
                raise
            reason = reason or reason_of(error)
    if GROWN[0] not in taken:
        own, other = (f"{height + by[0]}x{width + by[1]}" for by in ((0, 0), GROWN[0]) for height, width in sizes)
        raise InputError(
            f"export.dynamic_size: the model takes images of {own}, and fails on {other} ({reason}); leave it out"
        )
    return taken


def of_inputs(example: Inputs, batch: bool, size: bool) -> list[Axes]:
    """Return the open dimensions of every tensor of the inputs."""
    return [
        ({0: "batch"} if batch else {}) | (SIDES if size and is_image(each) else {}) for each in tensors_in(example)
    ]


def of_outputs(checks: Sequence[Check], inputs: Sequence[Axes]) -> dict[str, Axes]:
    """Return the open dimensions of every output, by name: those that differ between checks, and the batch.

    One that is as large as an open dimension of an input in every check has its name.
    """
    named: dict[tuple[int, ...], str] = {}
    for each, axes in zip(checks[0].inputs, inputs, strict=True):
        for axis, name in axes.items():
            named.setdefault(tuple(check.inputs[each].shape[axis] for check in checks), name)
    batches = [sizes for sizes, name in named.items() if name == "batch"]
    found: dict[str, Axes] = {}
    for output in checks[0].expected:
        found[output] = {}
        for axis in range(checks[0].expected[output].ndim):
            sizes = tuple(check.expected[output].shape[axis] for check in checks)
            if len(set(sizes)) > 1 or (axis == 0 and sizes in batches):
                found[output][axis] = named.get(sizes, f"{output}_{axis}")
    return found
