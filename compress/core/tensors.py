"""What modules take and return: one tensor, or tensors in tuples, lists, dictionaries and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

K = TypeVar("K")

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]
"""What a module is called with: one argument (a tensor, or a list of them, as detectors take images), a tuple of
positional or a dictionary of keyword arguments."""


def restore(model: nn.Module, state: Mapping[str, Any], *, strict: bool = True) -> None:
    """Load tensors by name that are of such a model as this; versions that its modules ask for are their own.

    Raises as `load_state_dict` does.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=strict)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Return what `model` gives for `inputs`, on copies of its own: some modules change their input in place."""
    return called(model, mapped(inputs, Tensor.clone))


def called(function: Callable[..., Any], inputs: Inputs) -> Any:
    """Return what `function`, such as a module, gives for `inputs` themselves; a named tuple is one argument."""
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return function(*inputs)
    return function(**inputs) if isinstance(inputs, dict) else function(inputs)


def moved(inputs: Inputs, device: str | torch.device) -> Inputs:
    """Return `inputs` on `device`."""
    return mapped(inputs, lambda each: each.to(device))  # type: ignore[no-any-return]


def doubled(inputs: Inputs) -> Inputs:
    """Return `inputs` with real numbers in double precision."""
    return mapped(inputs, lambda each: each.double() if each.is_floating_point() else each)  # type: ignore[no-any-return]


def flat(outputs: Any) -> Tensor:
    """Return all numbers in `outputs` in a row, float64."""
    return torch.cat([each.double().flatten() for each in tensors_in(outputs)])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in `value`, in the order in which it holds them."""
    for _, tensor in _leaves(value, (), Tensor):
        yield tensor


def computed(value: Any) -> None:
    """Wait until the tensors in `value` are computed: a GPU may still be at it."""
    for tensor in tensors_in(value):
        tensor.sum().item()


def named_tensors(value: Any, whole: str, part: str) -> dict[str, Tensor]:
    """Return the tensors in `value` by name: keys, fields and positions joined by `_`.

    A tensor alone is called `whole`; names begin with `part` where a position would come first. So
    `{"boxes": [a, b], "masks": c}` gives boxes_0, boxes_1 and masks, and `(a, b)` gives output_0 and output_1 with
    `part="output"`.
    """
    return named_leaves(value, whole, part, Tensor)


def named_leaves(value: Any, whole: str, part: str, kind: type[K]) -> dict[str, K]:
    """Return what is of `kind` in `value` by name; see `named_tensors`."""
    found: dict[str, K] = {}
    for place, leaf in _leaves(value, (), kind):
        words = [part, *place] if place and isinstance(place[0], int) else list(place)
        name = "_".join(map(str, words)) or whole
        while name in found:  # {"a": [x], "a_0": y}
            name += "_"
        found[name] = leaf
    return found


def mapped(value: Any, function: Callable[[Any], Any], kind: type[Any] = Tensor) -> Any:
    """Return `value` with `function` applied to every tensor (or `kind`) in it.

    Tuples, lists, dictionaries and dataclasses are of the same class as before.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, MutableMapping) and type(value) is not dict:
        made = copy.copy(value)
        for key, each in value.items():
            made[key] = mapped(each, function, kind)
        return made
    if isinstance(value, Mapping):
        return {key: mapped(each, function, kind) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        whole: Any = copy.copy(value)
        for field in dataclasses.fields(value):  # past the constructor, which may ask for other things
            object.__setattr__(whole, field.name, mapped(getattr(value, field.name), function, kind))
        return whole
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, function, kind) for each in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(each, function, kind) for each in value)
    return value


def _leaves(value: Any, place: tuple[Any, ...], kind: type[K]) -> Iterator[tuple[tuple[Any, ...], K]]:
    """Yield every `kind` in `value` with its place: the keys, fields and positions that lead to it."""
    parts: Any = ()
    if isinstance(value, kind):
        yield place, value
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    for key, part in parts:
        yield from _leaves(part, (*place, key), kind)
