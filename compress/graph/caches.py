"""What a model computes once in a forward pass and keeps for later ones: a bias made by an MLP, a mask for each size.

A model that was run before holds it already. It is found by taking it away: where a pass then ends with the same in its
place, and gives the same, the narrowed copy begins without it. All else that a model holds is copied as it is.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import is_out_of_memory
from compress.core.modes import evaluating
from compress.core.tensors import Inputs, call, tensors_in
from compress.graph.watch import Caches, watched

_OWN = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, list)
_MOST = 32  # kinds that are tried one by one
_TOLERANCE = 1e-5  # in terms of the largest value


def caches_of(model: nn.Module, inputs: Inputs) -> Caches:
    """Return what `model` keeps of former passes and makes again by itself; a model that never ran keeps nothing.

    Attributes are told apart by class: those of all its modules are such caches, or none is.
    """
    kinds = _kinds(model)
    everything = _together(kinds)
    usual = _pass(model, inputs, {}, everything) if kinds else None
    if usual is None:
        return {}

    def made_again(caches: Caches) -> bool:
        found = _pass(model, inputs, caches, caches)
        return found is not None and _alike(found.given, usual.given) and all(
            _same(value, usual.held[place]) for place, value in found.held.items()
        )  # fmt: skip

    if made_again(everything):
        return everything
    alone = [each for each in kinds[:_MOST] if made_again(each)]
    some = _together(alone)
    return some if len(alone) < 2 or made_again(some) else {}


class Filling:
    """Tells which attributes that hold nothing now come to hold tensors when `model` is run."""

    def __init__(self, model: nn.Module) -> None:
        self.empty: list[tuple[str, nn.Module, str, Any]] = [
            (name, module, attribute, None if value is None else type(value)())
            for name, module in model.named_modules()
            if not type(module).__module__.startswith("torch.")
            for attribute, value in vars(module).items()
            if attribute not in _OWN and (value is None or (type(value) in _CONTAINERS and not value))
        ]

    def filled(self) -> dict[str, dict[str, Any]]:
        """Return those that hold some now."""
        found: dict[str, dict[str, Any]] = {}
        for name, module, attribute, nothing in self.empty:
            now = vars(module).get(attribute)
            if isinstance(now, Tensor) if nothing is None else _holds_tensors(now):
                found.setdefault(name, {})[attribute] = nothing
        return found


@dataclass(frozen=True)
class _Pass:
    """What a model gave, and what its caches held afterwards, by module and attribute."""

    given: list[Tensor]
    held: dict[tuple[str, str], Any]


def _pass(model: nn.Module, inputs: Inputs, without: Caches, looked_at: Caches) -> _Pass | None:
    """Run a model that begins without some of its caches; None where that fails."""
    with watched(model, without), evaluating(model):
        try:
            given = list(tensors_in(call(model, inputs)))
        except Exception as error:  # of the model's own code: it cannot do without, or the trace will tell of it
            if is_out_of_memory(error):
                raise
            return None
        modules = dict(model.named_modules())
        held = {(name, each): vars(modules[name]).get(each) for name in looked_at for each in looked_at[name]}
        return _Pass(
            given, {place: copy(value) if type(value) in _CONTAINERS else value for place, value in held.items()}
        )


def _kinds(model: nn.Module) -> list[dict[str, dict[str, Any]]]:
    """Return the attributes that hold tensors which are neither parameters nor buffers, by class and name."""
    found: dict[tuple[type, str], dict[str, dict[str, Any]]] = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch."):  # whose hooks compute a weight before each pass
            continue
        for attribute, value in vars(module).items():
            computed = any(own.startswith(f"{attribute}_") for own in module._parameters)  # by a hook, of `weight_v`
            if not computed and attribute not in _OWN and (isinstance(value, Tensor) or _holds_tensors(value)):
                kind = found.setdefault((type(module), attribute), {})
                kind[name] = {attribute: None if isinstance(value, Tensor) else type(value)()}
    return list(found.values())


def _holds_tensors(value: Any) -> bool:
    """Return whether a dictionary or list holds something, and nothing without tensors."""
    if type(value) not in _CONTAINERS or not value:
        return False
    return all(any(True for _ in tensors_in(each)) for each in (value.values() if type(value) is dict else value))


def _together(kinds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    together: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        for name, attributes in kind.items():
            together.setdefault(name, {}).update(attributes)
    return together


def _same(now: Any, usual: Any) -> bool:
    """Return whether a cache holds what it usually does, a dictionary at least a part of that."""
    if isinstance(usual, Tensor | list):
        return type(now) is type(usual) and _alike(list(tensors_in(now)), list(tensors_in(usual)))
    return _holds_tensors(now) and type(usual) is dict and all(
        key in usual and _alike(list(tensors_in(value)), list(tensors_in(usual[key]))) for key, value in now.items()
    )  # fmt: skip


def _alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(_close, found, expected))


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.device != expected.device or found.is_complex() != expected.is_complex():
        return False
    wide = torch.cdouble if found.is_complex() else torch.double
    found, expected = found.detach().to(wide), expected.detach().to(wide)
    largest = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
