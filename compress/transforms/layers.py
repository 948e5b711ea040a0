"""Layers of a model replaced by others, and layers that stand for an ordinary one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import nn

from compress.core.errors import InputError

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Plain = nn.Linear | Convolution
"""The layers that can be replaced."""
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Foldable(nn.Module):
    """A layer that computes what an ordinary one does, with other parameters; files hold the ordinary one."""

    @abstractmethod
    def folded(self) -> nn.Module:
        """Return the ordinary layer, with parameters of its own."""


def folded(model: nn.Module) -> nn.Module:
    """Return `model` with every foldable layer made ordinary, in place."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Foldable)}
    return with_layers(model, {name: layer.folded() for name, layer in layers.items()})


def with_layers(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Return `model` with the layers of these names replaced, in place, wherever else it holds the same ones."""
    by_layer = {id(model.get_submodule(name)): layer for name, layer in new.items()}
    places = [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)]
    for name, layer in places:
        if layer in by_layer:
            if not name:
                return by_layer[layer]
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, by_layer[layer])
    return model


def plain_layer(model: nn.Module, name: str) -> Plain:
    """Return the linear layer or convolution called `name`; InputError where the model has none there."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the model has no layer {name!r}") from None
    if not isinstance(layer, PLAIN):
        raise InputError(f"the layer {name!r} is a {type(layer).__name__}, no linear layer or convolution")
    return layer


def kind_of(layer: Plain) -> type[Plain]:
    """Return the class of torch that a layer is of, be it by a subclass."""
    return next(kind for kind in PLAIN if isinstance(layer, kind))
