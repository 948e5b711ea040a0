"""The switches of a unit: what has to change in its layers for it to halve the map, and for it not to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import nn

from compress.core.errors import InputError
from spaces.pooling.calls import Call
from spaces.pooling.switches import Subsample, Switch
from spaces.pooling.units import Calls

How = Literal["max_pool", "stride"]

SHORTCUTS = ("downsample", "shortcut", "proj")
"""Attributes under which blocks of timm and torchvision keep the module of their shortcut, if it has one."""
SKIPS = ("has_skip", "use_res_connect", "apply_residual")
"""Attributes that say whether a block adds its input."""


def leaves_between(network: nn.Module, calls: Calls, begin: int, end: int) -> list[str]:
    """Return the layers that ran between two times, in the order in which they ran."""
    names = [
        name
        for name, call in calls.items()
        if call.on_maps and begin < call.start < end and not any(True for _ in network.get_submodule(name).children())
    ]
    return sorted(names, key=lambda name: calls[name].start)


def strided_layers(
    network: nn.Module, calls: Calls, region: Sequence[str], unit: str, sides: tuple[int, int]
) -> list[str]:
    """Return the layers of `region`, up to the end of `unit`, that take the map from one of `sides` to the other.

    Raises InputError, naming the layer, where there is none or one whose stride cannot be moved.
    """
    before, after = sides
    if -(-before // 2) != after and before // 2 != after:
        raise InputError(f"{unit} takes the map from {before} to {after} pixels; only halvings can be moved")
    found = [name for name in region if calls[name].sides == sides]
    for name in found:
        layer = network.get_submodule(name)
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kind = type(layer).__name__
            raise InputError(f"{name} halves the map as a {kind}; only strides of convolutions and pools can be moved")
    if not found:
        raise InputError(f"{unit} halves the map, but in no convolution or pool whose stride can be moved")
    return found


def is_even(layer: nn.Module) -> bool:
    """Return whether `layer` is a plain convolution with an even kernel, which halves but cannot keep the side."""
    if type(layer) is not nn.Conv2d or isinstance(layer.padding, str):
        return False
    sides = zip(layer.kernel_size, layer.padding, strict=True)
    return all(kernel % 2 == 0 and 2 * pad == kernel - 2 for kernel, pad in sides)


def own_strides(layer: nn.Module, name: str, how: How) -> Iterator[Switch]:
    """Yield what keeps a strided layer of the backbone from halving; with `how` stride it may halve in its place."""
    off: dict[str, tuple[int, int]] = {"stride": (1, 1)}
    if not isinstance(layer, nn.Conv2d):
        off |= {"kernel_size": (1, 1), "padding": (0, 0)}
    for attribute, value in off.items():
        yield Switch(name, attribute, value, getattr(layer, attribute) if how == "stride" else value)


def new_stride(network: nn.Module, calls: Calls, unit: str) -> Iterator[Switch]:
    """Yield what makes a unit halve that does not by itself: its first convolution over several pixels, its shortcut.

    Raises InputError for a unit without such a convolution.
    """
    call = calls[unit]
    for name in leaves_between(network, calls, call.start - 1, call.end):
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1 and layer.stride[0] == 1:
            yield Switch(inside(unit, name), "stride", (1, 1), (2, 2))
            break
    else:
        raise InputError(
            f"{unit} has no convolution over several pixels to take a stride of 2; how: max_pool needs none"
        )
    yield from _shortcut(network.get_submodule(unit), unit, call)


def inside(unit: str, name: str) -> str:
    """Return the name that a module of `unit` has once the unit is wrapped."""
    return f"{unit}.block{name.removeprefix(unit)}"


def _shortcut(block: nn.Module, unit: str, call: Call) -> Iterator[Switch]:
    for attribute in SHORTCUTS:
        path = getattr(block, attribute, None)
        if isinstance(path, nn.Module) and not isinstance(path, nn.Identity):
            names = [name for name, layer in path.named_modules() if isinstance(layer, nn.Conv2d)]
            for name in names[:1]:
                layer = inside(unit, f"{unit}.{attribute}.{name}".rstrip("."))
                yield Switch(layer, "stride", (1, 1), (2, 2))
            return
        if hasattr(block, attribute) and call.before == call.after:
            yield Switch(inside(unit, unit), attribute, path, Subsample())
            return
    for attribute in SKIPS:
        if getattr(block, attribute, False):
            yield Switch(inside(unit, unit), attribute, True, False)
            yield Switch(unit, "adds_shortcut", False, True)
            return
