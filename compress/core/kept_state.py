"""What a model holds besides its weights, put back after it was run: caches, counters, statistics, late buffers.

Copying a model for the sake of that would take its memory twice. Attributes and containers are remembered by
reference; the numbers of a tensor are copied once an operation is about to write to them, which few models do.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from compress.core.tensors import tensors_in

_ATOMS = (bool, int, float, str, type(None), torch.dtype, torch.device)
_HOOKS = frozenset(name for name in vars(nn.Module()) if "hook" in name)
_MOST, _LONG = 20_000, 1_000  # containers and objects that are looked at, entries of one whose parts are
_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy"))
_Cached = type(lru_cache(len))


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Give `model` back what it holds now when the block ends: every attribute, what is in them, and all numbers.

    Looked at are its modules, the lists, dictionaries, sets and objects of its own package that they hold, and all
    tensors in these. What methods of its classes keep by `functools.lru_cache` is forgotten before and after.
    Layers that are made by the first call stay.
    """
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        yield
        return
    held = _Held(model)
    held.forget()
    try:
        with held.writes:
            yield
    finally:
        held.put_back()


class _Held:
    """All that a model holds."""

    def __init__(self, model: nn.Module) -> None:
        self.containers: list[tuple[Any, Any]] = []  # with a copy of what was in them
        self.tensors: list[tuple[Tensor, Tensor, int]] = []  # with an alias and the place of their numbers
        self.caches = {each for kind in set(map(type, model.modules())) for each in _caches(kind)}
        kinds = {type(module).__module__.partition(".")[0] for module in model.modules()}
        self.own = kinds - _LIBRARIES  # packages whose objects are looked into
        self._look_through(model)
        self.writes = _Writes({place: alias for _, alias, place in self.tensors})

    def forget(self) -> None:
        """Empty what methods keep of their results."""
        for each in self.caches:
            each.cache_clear()

    def put_back(self) -> None:
        """Restore everything."""
        self.forget()
        for container, before in self.containers:
            _refill(container, before)
        self.writes.undo()
        for tensor, alias, place in self.tensors:
            if _place(tensor) != place or tensor.shape != alias.shape or tensor.stride() != alias.stride():
                tensor.data = alias

    def _look_through(self, model: nn.Module) -> None:
        seen: dict[int, Any] = {}
        left: list[Any] = [model]
        while left and len(seen) < _MOST:
            value = left.pop()
            if id(value) in seen:
                continue
            seen[id(value)] = value
            if isinstance(value, Tensor):
                place = _place(value)
                if place is not None:
                    self.tensors.append((value, value.detach(), place))
                continue
            if not isinstance(value, tuple):
                container = vars(value) if self._is_object(value) else value
                self.containers.append((container, _plain(container)))
                value = container
            if len(value) <= _LONG:
                left += self._to_look_into(value)

    def _to_look_into(self, value: Any) -> Iterator[Any]:
        """Yield what in a container or among the attributes of an object holds something itself."""
        named = value.items() if isinstance(value, dict) else ((None, each) for each in value)
        for name, each in named:
            if type(each) not in _ATOMS and not (type(each) in (dict, OrderedDict) and name in _HOOKS):
                if isinstance(each, (Tensor, dict, list, tuple, set, deque)) or self._is_object(each):
                    yield each

    def _is_object(self, value: Any) -> bool:
        """Return whether a value has attributes to look at: a module, a namespace, or of the model's own package."""
        if isinstance(value, (nn.Module, SimpleNamespace)):
            return True
        if isinstance(value, (type, Tensor)) or callable(value) or not hasattr(value, "__dict__"):
            return False
        return type(value).__module__.partition(".")[0] in self.own


def _plain(container: Any) -> Any:
    """Return what is in a dictionary, set, list or deque."""
    return (dict if isinstance(container, dict) else set if isinstance(container, set) else list)(container)


@cache
def _caches(kind: type) -> tuple[Any, ...]:
    """Return the methods of a class that keep their results."""
    return tuple(each for base in kind.__mro__ for each in vars(base).values() if isinstance(each, _Cached))


def _refill(container: Any, before: Any) -> None:
    """Give a container what was in it before, in the same order."""
    if len(container) == len(before) and all(map(is_, container, before)):
        if not isinstance(container, dict) or all(map(is_, container.values(), before.values())):
            return
    container.clear()
    (container.update if isinstance(container, (dict, set)) else container.extend)(before)


def _place(tensor: Tensor) -> int | None:
    """Return what tells where the numbers of a tensor lie; None where they are not ordinary memory."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # of a class of tensors that hold others
        return None


class _Writes(TorchDispatchMode):
    """Copies the numbers of known tensors before an operation writes to them."""

    def __init__(self, known: dict[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.saved: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = _written(func)
        if written and not _only_reads(func, args, kwargs):
            for place, name in written:
                for tensor in tensors_in(args[place] if place < len(args) else kwargs.get(name)):
                    at = _place(tensor)
                    if at in self.known and at not in self.saved:
                        self.saved[at] = self.known[at].untyped_storage().clone()
        return func(*args, **kwargs)

    def undo(self) -> None:
        """Write the numbers back."""
        for place, numbers in self.saved.items():
            storage = self.known[place].untyped_storage()
            if storage.nbytes() != numbers.nbytes():
                storage.resize_(numbers.nbytes())
            storage.copy_(numbers)


_STATISTICS = ("running_mean", "running_var")  # written by batch norms, not all of which say so


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the arguments that an operation writes to, by place and name."""
    return tuple(
        (place, each.name)
        for place, each in enumerate(func._schema.arguments)
        if (each.alias_info is not None and each.alias_info.is_write)
        or (each.name in _STATISTICS and "no_training" not in func.overloadpacket.__name__)
    )


@cache
def _flag(func: Any) -> tuple[int, str] | None:
    """Return which argument of a batch norm says that it takes the batch's statistics."""
    names = [each.name for each in func._schema.arguments]
    return next(((names.index(name), name) for name in ("training", "train") if name in names), None)


def _only_reads(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation is a batch norm that goes by its statistics and leaves them as they are."""
    flag = _flag(func) if any(name in _STATISTICS for _, name in _written(func)) else None
    if flag is None:
        return False
    place, name = flag
    return not (args[place] if place < len(args) else kwargs.get(name))
