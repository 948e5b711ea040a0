"""Copies of modules."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from functools import partial, update_wrapper
from types import CellType, FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

from compress.core.tensors import tensors_in

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=Sequence[Any])


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """Return `copy.deepcopy(model, memo)`, made in a third of the time.

    Most of what a module holds is numbers, names and empty containers (a dozen of hooks), which need no recursion.
    What was compiled in place (`module.compile()`) is plain in the copy, since it would run the module that is copied.
    Functions that hold parts of the model (hooks and lambdas over `self`), which `deepcopy` leaves as they are, and
    weak references hold those of the copy.
    Tensors that were computed from parameters (the weight of an old weight norm, a cache), which `deepcopy` refuses,
    are copied without their history.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) or (isinstance(value, (dict, list, tuple)) and value):
                for tensor in tensors_in(value):
                    if not tensor.is_leaf and id(tensor) not in memo:
                        memo[id(tensor)] = tensor.detach().clone()
    replaced = {id(inner) for module in model.modules() if id(module) in memo for inner in module.modules()}
    plain = {kind: _is_plain(kind) for kind in map(type, model.modules())}
    modules = [module for module in model.modules() if id(module) not in replaced and plain[type(module)]]
    for module in modules:  # all first: they may refer to one another in a circle
        memo[id(module)] = type(module).__new__(type(module))
    for module in reversed(modules):  # children first: what was compiled asks what it holds
        own = vars(memo[id(module)])
        for name, value in vars(module).items():
            if name == "_compiled_call_impl":  # of `module.compile()`: it would run the module that is copied
                continue
            if type(value) in (bool, int, float, str, type(None)):
                own[name] = value
            elif type(value) in (OrderedDict, dict, list, set) and not value and id(value) not in memo:
                own[name] = memo[id(value)] = type(value)()
            else:
                own[name] = copy.deepcopy(value, memo)
    whole = copy.deepcopy(model, memo)
    for module in model.modules():
        if id(module) in memo and id(module) not in replaced and _is_own_forward(module, vars(module).get("forward")):
            vars(memo[id(module)]).pop("forward", None)  # it would run the module that is copied, too
    relink = _Relink(memo)
    for module in whole.modules():
        own = vars(module)
        for name, value in own.items():
            own[name] = relink(value)
    return whole


class _Relink:
    """Lets functions hold the copies of what they held, by the `memo` of `deepcopy`."""

    def __init__(self, memo: Mapping[int, Any]) -> None:
        self.memo = memo
        self.made: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        """Return what takes the place of `value` in a copy: itself, if it is no function; containers are changed."""
        if type(value) in (dict, OrderedDict):
            for key, each in value.items():
                value[key] = self(each)
        elif type(value) in (list, deque):
            for place, each in enumerate(value):
                value[place] = self(each)
        elif type(value) is tuple:
            return _same_or(value, tuple(map(self, value)))
        elif type(value) in _FUNCTIONS:
            return self.held(value)
        return value

    def held(self, value: Any) -> Any:
        """Return what a function in a copy is to hold in place of `value`."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if id(value) not in self.made:
            self.made[id(value)] = value  # it may hold itself
            self.made[id(value)] = _FUNCTIONS[type(value)](self, value) if type(value) in _FUNCTIONS else value
        return self.made[id(value)]

    def function(self, value: FunctionType) -> FunctionType:
        """Return the function over copies."""
        cells = [CellType() for _ in value.__closure__ or ()]
        made = FunctionType(value.__code__, value.__globals__, value.__name__, closure=tuple(cells))
        self.made[id(value)] = made  # it may call itself
        own, defaults, keywords = value.__closure__ or (), value.__defaults__ or (), value.__kwdefaults__ or {}
        before = [*map(_content, own), *defaults, *keywords.values()]
        after = [*map(self.held, before)]
        if all(new is old or new is made for new, old in zip(after, before, strict=True)):
            return value
        for cell, content in zip(cells, after, strict=False):
            cell.cell_contents = content
        update_wrapper(made, value).__dict__.pop("__wrapped__", None)
        made.__defaults__ = tuple(after[len(own) : len(own) + len(defaults)]) or None
        made.__kwdefaults__ = dict(zip(keywords, after[len(own) + len(defaults) :], strict=True)) or None
        return made

    def partial(self, value: partial[Any]) -> partial[Any]:
        """Return the call over copies."""
        keywords = {name: self.held(each) for name, each in value.keywords.items()}
        return partial(self.held(value.func), *map(self.held, value.args), **keywords)

    def reference(self, value: weakref.ref[Any]) -> weakref.ref[Any]:
        """Return the weak reference to the copy."""
        target = value()
        return value if self.held(target) is target else weakref.ref(self.held(target))

    def mapping(self, value: Any) -> Any:
        """Return a dictionary that only functions know."""
        before = [*value.values()]
        after = _same_or(before, [*map(self.held, before)])
        return value if after is before else type(value)(zip(value, after, strict=True))

    def sequence(self, value: Any) -> Any:
        """Return a list or tuple that only functions know."""
        return _same_or(value, type(value)(map(self.held, value)))


_FUNCTIONS: Mapping[type[Any], Any] = {
    FunctionType: _Relink.function,
    partial: _Relink.partial,
    weakref.ref: _Relink.reference,
    **dict.fromkeys((dict, OrderedDict), _Relink.mapping),
    **dict.fromkeys((list, deque, tuple), _Relink.sequence),
}


def _same_or(before: S, after: S) -> S:
    """Return `before` where `after` holds the same objects."""
    return before if all(a is b for a, b in zip(before, after, strict=True)) else after


def _content(cell: CellType) -> Any:
    """Return what a variable of a function holds; None while it holds nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_own_forward(module: nn.Module, value: Any) -> bool:
    """Whether an attribute `forward` is the class's own method, compiled: `m.forward = torch.compile(m.forward)`."""
    named = getattr(value, "__qualname__", None) == type(module).forward.__qualname__
    return named and hasattr(value, "_torchdynamo_orig_callable")


def _is_plain(kind: type[nn.Module]) -> bool:
    """Return whether a copy of a module is a copy of its attributes: its class does nothing of its own about that."""
    ways = ("__new__", "__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__deepcopy__")
    same = all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in ways)
    return same and kind.__basicsize__ == nn.Module.__basicsize__  # no list or dictionary at the same time
