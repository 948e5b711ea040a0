"""Gradients for criteria that need data: taken beside the model, which is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from compress.criteria.unit_criterion import matrices
from compress.graph.graph import Group


def touched(model: nn.Module, groups: Iterable[Group]) -> dict[str, nn.Parameter]:
    """Return the weight matrices and kernels that the units of `groups` have a part in, by name."""
    names = dict.fromkeys(part.tensor for group in groups for part in matrices(group))
    return {name: model.get_parameter(name) for name in names}


def gradients(loss: Tensor, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradient of `loss` for every weight (zeros where it has none); `.grad` is not touched."""
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


@contextlib.contextmanager
def differentiable(model: nn.Module, mode: AbstractContextManager[None]) -> Iterator[None]:
    """Run the model in a mode, such as `Task.losing`, with gradients for every parameter; put both back afterwards."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        with mode, torch.enable_grad():
            yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
