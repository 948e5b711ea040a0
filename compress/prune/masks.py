"""Masks of single weights: made from scores, applied, and kept through training. True means kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from compress.errors import InputError


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the removed weights of `model` to 0 in place; use it on EMA copies too.

    Raises:
        InputError: a mask has no parameter of its name and shape.
    """
    for parameter, removed in _removed(model, masks).values():
        parameter.masked_fill_(removed, 0.0)


def removed_count(masks: Mapping[str, Tensor]) -> int:
    """Return how many weights the masks remove; kept weights that happen to be 0 are not counted."""
    return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks.values())


class MaskKeeper:
    """Keeps removed weights at 0 through training, the optimiser's memory of them included.

    AdamW moves a masked weight although its gradient is masked (running means, weight decay), so each
    step is wrapped: `before_step` masks the gradients (call it before clipping them), `after_step` zeroes the
    removed weights and every entry of the optimiser's state that belongs to one (running means and squares,
    momentum). `attach` does both through the optimiser's own hooks.

    >>> keeper = MaskKeeper(model, masks)
    >>> handles = keeper.attach(optimizer)
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Zero the removed weights of `model`; an `InputError` names masks that fit no parameter."""
        self._entries = list(_removed(model, masks).values())
        apply_masks(model, masks)

    @torch.no_grad()
    def before_step(self) -> None:
        """Zero the gradients of removed weights."""
        for parameter, removed in self._entries:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(removed, 0.0)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Zero the removed weights and their part of the optimiser's state (tensors of the weight's shape)."""
        for parameter, removed in self._entries:
            parameter.masked_fill_(removed, 0.0)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == removed.shape:
                    value.masked_fill_(removed.to(value.device), 0)

    def attach(self, optimizer: Optimizer) -> list[RemovableHandle]:
        """Run both halves around every `optimizer.step()`; the handles take them off again."""

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.before_step()

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.after_step(optimizer)

        return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]


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
