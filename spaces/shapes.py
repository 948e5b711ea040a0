"""Sizes of a model's input, and whether it takes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from compress.core.errors import InputError, did_you_mean, is_out_of_memory, reason_of
from compress.core.inputs import ModelInputs
from compress.core.modes import answered_twice
from compress.core.tensors import call, called, named_tensors
from evaluators.tasks import Task

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


def wished(size: int) -> int | None:
    """Return a size of a task, None where the task leaves it to the model."""
    return size or None


def sides_of(task: Task) -> Shape | None:
    """Return the sizes behind the channels that `task` asks for, height and width of images; None where it does not."""
    sides = task.input_size[1:]
    return sides if task.input_size and all(sides) else None


def check_forward(module: nn.Module, name: str, task: Task, described: ModelInputs | None = None) -> int | None:
    """Return the width of the head of `module`, in eval mode, by one input of `task`; None if it gives other outputs.

    Where the recipe describes the inputs, it is run on such.

    Raises InputError, naming the model `name`, when it fails, when it returns no tensor, or when it does not give the
    outputs that `task` asks for.
    """
    if described is not None:
        check_names(module, name, described)
    given = task.arguments(torch.zeros(1, *task.input_size)) if described is None else described.draw(1)
    with running_layers(module) as running:
        try:
            with torch.no_grad():
                output: Any = call(module, given)
        except (Exception, SystemExit) as error:  # the user's module may raise anything
            if is_out_of_memory(error):
                raise
            layer = f" in layer {running[-1]!r}" if any(running) else ""
            if described is not None:
                raise InputError(f"model.inputs: {name!r} fails{layer} on {described}: {reason_of(error)}") from error
            raise InputError(
                f"model.name: {name!r} fails{layer} on an input of {_sizes(task.input_size)}: {reason_of(error)}; "
                "give data.image_size or model.input_size if it takes another, or model.inputs if it takes several"
            ) from error
    tensors = named_tensors(output, task.output_name, "output")
    if not tensors:
        raise InputError(f"model.name: {name!r} returned {type(output).__name__} without any tensor for one input")
    found = task.config.outputs_of(output)
    if found == 0:  # of the task, and their number is not to be seen
        found = task.config.width_of(module) or task.num_outputs
    if not task.num_outputs or found == task.num_outputs:
        return found
    if found is not None:
        raise InputError(
            f"model.name: {name!r} gives {found} {task.counted}; the data has {task.num_outputs} "
            "(set the number in model.kwargs)"
        )
    what = ", ".join(f"{key} {shown(value.shape)}" for key, value in tensors.items())
    what = shown(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__} ({what})"
    raise InputError(
        f"model.name: {name!r} returned {what} for one input; the data has {task.num_outputs} {task.counted}, so "
        f"{task.form} are needed; leave the data out with data.name: none"
    )


def peculiarities(module: nn.Module, task: Task, described: ModelInputs | None = None) -> list[str]:
    """Return what users are to know of how `module`, in eval mode, answers: at random, or as its task does not want."""
    if described is None:
        noise = torch.randn(2, *task.input_size, generator=torch.Generator().manual_seed(0))
        given = task.arguments(noise[:1])
    else:
        given = described.draw(1)
    notes = []
    try:
        output, varies = answered_twice(module, given)
        if varies:
            notes.append(
                "the model gives other outputs each time that it is run on one input, in eval mode as well (such as "
                "F.dropout without training=self.training): its figures vary, and no ONNX file of it can be checked"
            )
        notes += task.notes_on(output)
    except Exception:  # a model that does not run is refused where it is tried, with the reason
        pass
    return notes


def check_names(module: nn.Module, name: str, described: ModelInputs) -> None:
    """Raise InputError where the forward pass of the model `name` takes no such arguments, or needs others."""
    try:
        taken = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return
    try:
        called(taken.bind, described.arguments)
    except TypeError as error:
        known = list(taken.parameters)
        unknown = [each for each in described.keywords if each not in known]
        hint = did_you_mean(unknown[0], known) if unknown else ""
        takes = ", ".join(map(str, taken.parameters.values())) or "nothing"
        raise InputError(f"model.inputs: {error}; the forward pass of {name!r} takes {takes}{hint}") from None


@contextmanager
def running_layers(module: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the layers that are running, the innermost last; where one fails, up to that one."""
    names, running = {each: name for name, each in module.named_modules()}, list[str]()

    def enter(layer: nn.Module, args: Any) -> None:
        running.append(names[layer])

    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    hooks = [
        hook for each in names for hook in (each.register_forward_pre_hook(enter), each.register_forward_hook(leave))
    ]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def _sizes(shape: Shape) -> str:
    return f"(channels, height, width) {shape}" if len(shape) == 3 else f"sizes {shape}"
