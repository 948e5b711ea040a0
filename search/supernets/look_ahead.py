"""The second-order gradient of strengths: what they do to the weights of the next update counts as well.

Liu et al. 2019, "DARTS: Differentiable Architecture Search", equations 6 to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.training.engine import Engine

Loss = Callable[[], Tensor]


def second_order(
    strengths: Tensor,
    weights: Sequence[nn.Parameter],
    held_out: Loss,
    training: Loss,
    optimizer: Optimizer,
    engine: Engine,
    xi: float | None = None,
) -> None:
    """Add the gradient of the held-out loss, at the weights that the next update leads to, to that of `strengths`.

    It is approximated by the difference of two passes on the training batch. Weights are as before when it ends, and
    have no gradients.

    Args:
        strengths: leaf tensor that both losses depend on.
        weights: parameters, trained by `optimizer`.
        held_out: computes the loss on a held-out batch.
        training: computes the loss on the batch of the next update.
        optimizer: stochastic gradient descent, with momentum and weight decay or without.
        engine: where passes run.
        xi: how far the weights go; None is the learning rate.
    """
    xi = optimizer.param_groups[0]["lr"] if xi is None else xi
    engine.backward(training(), inputs=weights)
    engine.average(weights)
    used = [weight for weight in weights if weight.grad is not None]
    before = [weight.detach().clone() for weight in used]
    _advance(used, optimizer, xi)
    engine.backward(held_out(), inputs=[strengths, *weights])
    engine.average(weights)
    slopes = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in used]
    _clear(weights)
    epsilon = 0.01 / torch.nn.utils.get_total_norm(slopes).clamp_min(1e-12)
    ends = []
    for sign in (1, -1):
        _put(used, before, slopes, sign * epsilon)
        kept, strengths.grad = strengths.grad, None
        engine.backward(training(), inputs=[strengths])
        ends.append(torch.zeros_like(strengths) if strengths.grad is None else strengths.grad)
        strengths.grad = kept
    _put(used, before, slopes, torch.zeros_like(epsilon))
    assert strengths.grad is not None
    strengths.grad -= xi * (ends[0] - ends[1]) / (2 * epsilon)


@torch.no_grad()
def _advance(weights: Sequence[Tensor], optimizer: Optimizer, xi: float) -> None:
    """Make the optimiser's step, of size `xi`, without its state noticing."""
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    for weight in weights:
        group = groups[id(weight)]
        step = weight.grad + group["weight_decay"] * weight
        momentum = optimizer.state.get(weight, {}).get("momentum_buffer")
        if momentum is not None:
            step += group["momentum"] * momentum
        weight -= xi * step
    _clear(weights)


def _clear(weights: Sequence[Tensor]) -> None:
    for weight in weights:
        weight.grad = None


@torch.no_grad()
def _put(weights: Sequence[Tensor], start: Sequence[Tensor], directions: Sequence[Tensor], length: Tensor) -> None:
    """Set `weights` to `start` + `length` · `directions`."""
    for weight, old, direction in zip(weights, start, directions, strict=True):
        torch.addcmul(old, direction, length, out=weight)
