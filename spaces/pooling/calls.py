"""One run of a network without storage: which module works when, on maps of which shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import InputError, is_out_of_memory
from compress.core.meta import ShapesAlone, without_storage
from evaluators.tasks import Task

Shape = tuple[int, ...]


@dataclass
class Call:
    """The first run of a module: when it began and ended, its shapes (None where not one tensor), how often it ran."""

    start: int
    end: int = -1
    before: Shape | None = None
    after: Shape | None = None
    times: int = 1

    @property
    def on_maps(self) -> bool:
        """Whether the module ran once, from one map (N, C, H, W) to another."""
        return self.times == 1 and all(shape is not None and len(shape) == 4 for shape in (self.before, self.after))

    @property
    def sides(self) -> tuple[int, int]:
        """Height of the map before and after."""
        assert self.before is not None and self.after is not None
        return self.before[2], self.after[2]


def on_meta(create: Callable[[Task], nn.Module], task: Task) -> nn.Module:
    """Return the network in eval mode, without storage."""
    try:
        with without_storage():
            network = create(task)
    except NotImplementedError:  # some constructors compute their widths with tensors
        with torch.random.fork_rng(devices=[]):
            network = create(task).to("meta")
    return network.eval().requires_grad_(False)


def meta_images(task: Task) -> Tensor:
    """Return one image without storage."""
    return torch.empty(1, task.in_chans, task.img_size, task.img_size, device="meta")


def trace(network: nn.Module, images: Tensor) -> dict[str, Call]:
    """Run `network` once and return its modules that ran, by name, parents before children.

    Raises InputError where it fails.
    """
    clock = count()
    calls: dict[nn.Module, Call] = {}

    def enter(module: nn.Module, args: Any) -> None:
        if module in calls:
            calls[module].times += 1
        else:
            calls[module] = Call(next(clock), before=_shape(args[0] if args else None))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        calls[module].end, calls[module].after = next(clock), _shape(output)

    named = list(network.named_modules())
    hooks = [module.register_forward_pre_hook(enter) for _, module in named]
    hooks += [module.register_forward_hook(leave) for _, module in named]
    try:
        with torch.no_grad(), ShapesAlone():
            network(images)
    except Exception as error:  # a constructor's network may raise anything
        if is_out_of_memory(error):
            raise
        raise InputError(f"fails on an image of shape {tuple(images.shape[1:])}: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return {name: calls[module] for name, module in named if module in calls}


def first_line(error: Exception) -> str:
    """Return what `error` says first, else its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _shape(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
