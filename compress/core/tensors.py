"""What modules take and return: one tensor, or tensors in tuples, lists, dictionaries and other objects."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Set, ValuesView
from enum import Enum
from pathlib import PurePath
from types import SimpleNamespace
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

    Tuples, lists, dictionaries, dataclasses and other objects are of the same class as before.
    """
    return _mapped(value, function, kind, ())


def _mapped(value: Any, function: Callable[[Any], Any], kind: type[Any], above: tuple[int, ...]) -> Any:
    """Return `mapped`; `above` are the objects that `value` lies in, which it may hold in turn."""
    if isinstance(value, kind):
        return function(value)
    if (record := _record(value)) is not None:
        if id(value) in above or not any(True for _ in _leaves(value, (), kind, above)):
            return value
        whole: Any = copy.copy(value)
        for name, part in record.items():  # past the constructor, which may ask for other things
            object.__setattr__(whole, name, _mapped(part, function, kind, (*above, id(value))))
        return whole
    made: Any = value
    if isinstance(value, MutableMapping) and type(value) is not dict:
        made = copy.copy(value)
        for key, each in value.items():
            made[key] = _mapped(each, function, kind, above)
    elif isinstance(value, Mapping):
        made = {key: _mapped(each, function, kind, above) for key, each in value.items()}
    elif isinstance(value, (tuple, list, deque)):
        parts = [_mapped(each, function, kind, above) for each in value]
        made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return made


def hiding(value: Any, above: tuple[int, ...] = ()) -> str | None:
    """Return the name of a type in `value` whose tensors cannot be seen, such as a generator; None without such."""
    if isinstance(value, (Iterator, Set)) or (type(value).__module__ == "numpy" and getattr(value, "ndim", 0) != 0):
        return type(value).__name__
    parts, above = _parts(value, above)
    return next((name for _, part in parts if (name := hiding(part, above)) is not None), None)


def _leaves(
    value: Any, place: tuple[Any, ...], kind: type[K], above: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], K]]:
    """Yield every `kind` in `value` with its place: the keys, fields and positions that lead to it."""
    if isinstance(value, kind):
        yield place, value
        return
    parts, above = _parts(value, above)
    for key, part in parts:
        yield from _leaves(part, (*place, key), kind, above)


def _parts(value: Any, above: tuple[int, ...]) -> tuple[Iterable[tuple[Any, Any]], tuple[int, ...]]:
    """Return what `value` holds, by keys, fields and positions, and the objects that this lies in: `above`, and it."""
    if isinstance(value, Mapping):
        return value.items(), above
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True), above
    if isinstance(value, (tuple, list, deque, ValuesView)):
        return enumerate(value), above
    record = _record(value)
    return ((), above) if record is None or id(value) in above else (record.items(), (*above, id(value)))


def _record(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object that may hold tensors, as of a dataclass; None of what is something else."""
    kind = type(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if kind is not SimpleNamespace and (not kind.__flags__ & _HEAP_TYPE or isinstance(value, _NO_RECORDS)):
        return None
    slots = (name for each in kind.__mro__ for name in _names(vars(each).get("__slots__", ())))
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _names(slots: Any) -> Iterator[str]:
    """Yield the names of a class's slots that are attributes of their own."""
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return (each for each in names if each not in ("__dict__", "__weakref__") and not each.startswith("__"))


_HEAP_TYPE = 1 << 9
"""Flag of classes that are written in Python."""
_NO_RECORDS = (type, nn.Module, Tensor, Mapping, tuple, list, deque, Enum, PurePath, str, int, float, frozenset, set)
