"""What an exported file is checked on: inputs of several batch sizes, and what the module says to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.copies import copied
from compress.core.errors import CompressError, InputError
from compress.core.inputs import BATCH
from compress.core.tensors import Inputs, call, mapped, named_tensors, tensors_in
from evaluators.tasks import Task

ROUNDING, ROUNDING_OF_HALVES = 1e-4, 5e-3
"""What the order of sums makes of outputs, in terms of the largest; where numbers have 11 bits or fewer."""
AMPLIFIED = 1e-3
"""A model of which float32 makes more than this, of its largest output, says nothing about a file."""
OTHER_ORDER = 10
"""So many times as far off as the module's own float32 a file may be, which adds in another order."""


@dataclass(frozen=True)
class Check:
    """One call: its inputs and what the module gives for them, each by the name that it has in the file."""

    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    open_sizes: dict[str, int] = field(default_factory=dict)
    rounding: float = ROUNDING
    """How far an output of a file may be off, in terms of its largest value."""
    amplified: Callable[[], float] = lambda: 0.0
    """Returns by how much the module's own output in float32 is off from that in float64, see `own_rounding`."""

    def allowed(self) -> float:
        """Return how far an output may be off where it is by more than `rounding`: the module may amplify it."""
        own = self.amplified()
        return max(self.rounding, OTHER_ORDER * own) if own <= AMPLIFIED else self.rounding

    @property
    def images(self) -> Tensor:
        """The first input of four dimensions, else the first."""
        return next((each for each in self.inputs.values() if each.ndim == 4), next(iter(self.inputs.values())))

    @property
    def batch(self) -> int:
        """How many samples these are: the size of the open batch, else of the first dimension of the images."""
        return self.open_sizes.get(BATCH, len(self.images) if self.images.ndim else 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the dimensions that the file leaves open, beside the batch."""
        return tuple(size for name, size in self.open_sizes.items() if name != BATCH)

    @property
    def when(self) -> str:
        """Batch and open sizes, in words."""
        told = [f"{name} {size}" for name, size in self.open_sizes.items() if name != BATCH]
        return ", ".join([f"at batch {self.batch}", *told])


class Flat(nn.Module):
    """A module for exporters: a tuple of tensors in and out, and inputs of its own where it changes them.

    One tuple: torch 2.9's exporter to programs fails on a forward pass that takes any number of tensors. Out are those
    that the module gives outside of a trace, in which sizes that it returns as Python numbers are tensors as well.
    """

    def __init__(self, module: nn.Module, example: Inputs) -> None:
        super().__init__()
        self.module = module
        self.example = [example]  # in a list, where no exporter looks for constants
        with torch.no_grad():
            self.names = list(named_tensors(call(module, example), "output", "output"))

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the module with `tensors` in the places that the example has them."""
        left = iter(tensors)
        found = named_tensors(call(self.module, mapped(self.example[0], lambda _: next(left))), "output", "output")
        return tuple(found[name] for name in self.names)


def shares_batch(inputs: Inputs) -> bool:
    """Whether all inputs have the same first dimension, which then is the batch."""
    sizes = {each.shape[:1] for each in tensors_in(inputs)}
    return len(sizes) == 1 and sizes != {torch.Size()}


def like(example: Inputs, batch: int, seed: int) -> Inputs:
    """Return inputs like `example` of another batch and content, of the same batch where inputs share none.

    Images are smooth areas plus noise, scaled as normalised images are. Whole numbers and, beside other inputs, vectors
    keep the example's values, as they may be indices, times or scales.
    """
    shared, alone = shares_batch(example), isinstance(example, Tensor)
    generator = torch.Generator().manual_seed(seed)

    def another(tensor: Tensor) -> Tensor:
        size = batch if shared else len(tensor) if tensor.ndim else 0
        if not tensor.is_floating_point() or not (alone or tensor.ndim > 2):
            return tensor[torch.arange(size) % len(tensor)].clone() if tensor.ndim else tensor.clone()
        return _noise((size, *tensor.shape[1:]), generator).to(tensor.dtype)

    return mapped(example, another)  # type: ignore[no-any-return]


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    noise = torch.randn(tuple(shape), generator=generator)
    if len(shape) == 4:
        coarse = torch.randn((*shape[:2], 4, 4), generator=generator)
        noise = 0.4 * noise + 0.9 * nn.functional.interpolate(coarse, size=tuple(shape[2:]), mode="bilinear")
    return noise


def answered(module: nn.Module, inputs: Inputs, task: Task, axes: Sequence[Mapping[int, str]] = ()) -> Check:
    """Return the check of `inputs`: the module's answer, called as the task has it, output_N or by its keys.

    `axes` are names of the open dimensions of every input.

    Raises:
        InputError: the answer holds complex numbers.
        CompressError: the answer holds no tensor, or NaN or infinite values, with which no file can be compared.
    """
    with torch.no_grad():
        output: Any = call(module, inputs)
    given = named_tensors(inputs, task.input_name, "input")
    found = named_tensors(output, task.output_name, "output")
    if not found:
        raise CompressError(
            f"the model returns a {type(output).__name__} without any tensor; there is nothing to export"
        )
    for name, value in found.items():
        if value.is_complex():
            raise InputError(
                f"export: the model's output {name!r} holds complex numbers, which ONNX files have none of; return "
                "torch.view_as_real of it"
            )
        if not torch.isfinite(value).all():
            where = "the model's output" if isinstance(output, Tensor) else f"the model's output {name!r}"
            raise CompressError(f"{where} holds NaN or infinite values, so its export cannot be checked")
    expected = {f"{name}_out" if name in given else name: value.clone() for name, value in found.items()}
    sizes = {
        name: tensor.shape[axis]
        for tensor, named in zip(given.values(), axes, strict=False)
        for axis, name in named.items()
    }
    numbers = [*module.parameters(), *given.values(), *found.values()]
    halves = any(each.dtype in (torch.float16, torch.bfloat16) for each in numbers)
    rounding = ROUNDING_OF_HALVES if halves else ROUNDING
    return Check(given, expected, sizes, rounding, partial(own_rounding, module, inputs))


def own_rounding(module: nn.Module, inputs: Inputs) -> float:
    """Return by how much outputs in float32 differ from those in float64, in terms of the largest of each output.

    0 where the module does not compute in float64. It is copied, so this is for what has failed.
    """
    try:
        exact = copied(module).double()
        wide = mapped(inputs, lambda each: each.double() if each.dtype == torch.float32 else each.clone())
        with torch.no_grad():
            pairs = zip(tensors_in(call(module, inputs)), tensors_in(call(exact, wide)), strict=True)
            return max((_off(each, wider) for each, wider in pairs if each.is_floating_point()), default=0.0)
    except Exception:  # modules name types, and so raise anything
        return 0.0


def _off(value: Tensor, exact: Tensor) -> float:
    scale = exact.abs().max().item() if exact.numel() else 0.0
    return (value.double() - exact).abs().max().item() / scale if scale else 0.0


def needs_flat(module: nn.Module, inputs: Inputs) -> bool:
    """Whether `module` takes or gives more than one tensor, or changes its input in place."""
    if not isinstance(inputs, Tensor):
        return True
    own = inputs.clone()
    with torch.no_grad():
        output = module(own)
    return not isinstance(output, Tensor) or not torch.equal(own, inputs)
