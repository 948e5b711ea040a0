"""Masks of single weights: made from scores, applied, and kept through training. True means kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.core.errors import InputError


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the removed weights of `model` to 0 in place; use it on EMA copies too.

    Raises:
        InputError: a mask has no parameter of its name and shape.
    """
    for parameter, removed in _removed(model, masks).values():
        parameter.masked_fill_(removed, 0.0)


class MaskKeeper:
    """Keeps removed weights at 0 through training, the optimiser's memory of them included.

    AdamW moves a masked weight although its gradient is masked (running means, weight decay), so each
    step is wrapped: `before_step` masks the gradients (call it before clipping them), `after_step` zeroes the
    removed weights and every entry of the optimiser's state that belongs to one (running means and squares,
    momentum). All weights are masked by one operation, which on a GPU is one kernel and not hundreds.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Zero the removed weights of `model`; an `InputError` names masks that fit no parameter."""
        apply_masks(model, masks)
        found = _removed(model, masks).values()
        self._entries = [(parameter, (~removed).to(parameter.dtype)) for parameter, removed in found]

    @torch.no_grad()
    def before_step(self) -> None:
        """Zero the gradients of removed weights."""
        _keep([(parameter.grad, kept) for parameter, kept in self._entries if parameter.grad is not None])

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Zero the removed weights and their part of the optimiser's state (tensors of the weight's shape)."""
        values = [
            (value, kept)
            for parameter, kept in self._entries
            for value in (parameter, *optimizer.state.get(parameter, {}).values())
            if isinstance(value, Tensor) and value.shape == kept.shape
        ]
        _keep(values)


def _keep(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Multiply each tensor by its mask of zeros and ones, in place."""
    if values:
        tensors, kept = zip(*values, strict=True)
        torch._foreach_mul_(tensors, kept)


def _removed(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Return each masked parameter with the negated mask on its device."""
    parameters = dict(model.named_parameters())
    problems = [
        f"mask of {name!r} with shape {tuple(mask.shape)} fits no parameter of the model"
        for name, mask in masks.items()
        if name not in parameters or parameters[name].shape != mask.shape
    ]
    if problems:
        raise InputError(*problems)
    return {name: (parameters[name], ~mask.bool().to(parameters[name].device)) for name, mask in masks.items()}
