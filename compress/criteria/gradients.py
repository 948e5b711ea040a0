"""Gradients for criteria that need data: taken beside the model, which is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from compress.criteria.unit_criterion import ScoringData, matrices
from compress.graph.graph import Group


def touched(model: nn.Module, groups: Iterable[Group]) -> dict[str, nn.Parameter]:
    """Return the weight matrices and kernels that the units of `groups` have a part in, by name."""
    names = dict.fromkeys(part.tensor for group in groups for part in matrices(group))
    return {name: model.get_parameter(name) for name in names}


def gradients(loss: Tensor, weights: Mapping[str, nn.Parameter], data: ScoringData) -> dict[str, Tensor]:
    """Return the gradient of `loss` for every weight; `.grad` is not touched.

    What the loss does not depend on gets zeros; the others are noted in `data.reached`.
    """
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    data.reached.update(name for name, slope in zip(weights, found, strict=True) if slope is not None)
    return {
        name: torch.zeros_like(weight) if slope is None else slope
        for (name, weight), slope in zip(weights.items(), found, strict=True)
    }


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
