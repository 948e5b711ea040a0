"""Copies of modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """Return `copy.deepcopy(model, memo)`, made in a third of the time.

    Most of what a module holds is numbers, names and empty containers (a dozen of hooks), which need no recursion.
    What was compiled in place (`module.compile()`) is plain in the copy, since it would run the module that is copied.
    """
    memo = {} if memo is None else memo
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
    return whole


def _is_own_forward(module: nn.Module, value: Any) -> bool:
    """Whether an attribute `forward` is the class's own method, compiled: `m.forward = torch.compile(m.forward)`."""
    named = getattr(value, "__qualname__", None) == type(module).forward.__qualname__
    return named and hasattr(value, "_torchdynamo_orig_callable")


def _is_plain(kind: type[nn.Module]) -> bool:
    """Return whether a copy of a module is a copy of its attributes: its class does nothing of its own about that."""
    ways = ("__new__", "__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__deepcopy__")
    same = all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in ways)
    return same and kind.__basicsize__ == nn.Module.__basicsize__  # no list or dictionary at the same time
