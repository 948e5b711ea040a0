"""Scores of an untrained network that go along with its accuracy after training: no training, one batch or none.

Larger is better, for all of them. What is kept to of the papers: batch norms use the batch's statistics, weights are
initial ones, and "weights" are parameters with two or more dimensions (of convolutions and linear layers). A network
gets images of its own, since it may change them in place.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from compress.core.errors import InputError
from compress.core.modes import evaluating
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task

SMALLEST = 1e-5
"""Added to, or least, eigenvalue: keeps scores of networks that answer two images alike finite."""

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus,
)  # fmt: skip
_aten: Any = torch.ops.aten
_UNITS = {
    packet for name in ("relu", "relu_", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "gelu",
    "silu", "silu_", "mish", "mish_", "hardswish", "hardswish_", "_prelu_kernel")
    if (packet := getattr(_aten, name, None)) is not None
}  # fmt: skip


def synflow(model: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Return ln of the synaptic flow: the sum over weights of |w| dR/d|w|.

    R is the sum of the outputs for an image of ones, of the network with absolute weights and without biases,
    activations and norms: the sum over all paths of the product of their weights (Tanaka et al. 2020, eq. 1 and
    section 4; summed over the network by Abdelfattah et al. 2021, section 3.2). Gates (sigmoids) stay. Computed in
    float64 on the CPU; a network whose flow is beyond float64 is fed and read at a smaller scale, which R follows in
    proportion.

    Args:
        model: any; left as it is.
        input_size: channels, height, width.
    """
    linear = _linearised(model)
    weights = _weights(linear)
    image = torch.ones(1, *input_size, dtype=torch.float64)
    for scale in (1.0, 1e-100, 1e-200, 1e-300):
        flow = linear(image * scale).sum() * scale
        gradients = torch.autograd.grad(flow, weights, allow_unused=True)
        score = sum(
            float((weight.detach() * gradient).abs().sum())
            for weight, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        )
        if math.isfinite(score):
            return math.log(max(score, sys.float_info.min)) - 2 * math.log(scale)
    return math.log(sys.float_info.max) - 2 * math.log(scale)


def grad_norm(model: nn.Module, batch: Batch, task: Task) -> float:
    """Return the sum over weights of the Euclidean norm of the loss's gradient (Abdelfattah et al. 2021, 3.1).

    Args:
        model: on the batch's device; left as it is.
        batch: that the loss is of.
        task: says what the loss is.
    """
    weights = _weights(model)
    batch = batch.mapped(Tensor.clone)
    with _batch_statistics(model, task.losing(model)):
        loss = task.loss(task.forward(model, batch), batch)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return sum(float(gradient.norm()) for gradient in gradients if gradient is not None)


def jacov(model: nn.Module, images: Tensor) -> float:
    """Return how little alike the network's answers change with different images.

    Each image gives a row: the gradient of the sum of its outputs by its pixels. With v the eigenvalues of the rows'
    correlation matrix, the score is -sum(ln(v + k) + 1 / (v + k)), k = 1e-5: the Kullback-Leibler divergence from
    uncorrelated rows, up to constants (Mellor et al. 2020, first version of arXiv 2006.04647, section 3;
    jacob_cov in Abdelfattah et al. 2021, section 3.3). Images (N, C, H, W); the model is left as it is.
    """
    images = images.detach().clone().requires_grad_(True)
    with _batch_statistics(model):
        (jacobian,) = torch.autograd.grad(model(images.clone()).sum(), images)
    rows = jacobian.flatten(1).double().cpu()
    rows = rows - rows.mean(1, keepdim=True)
    lengths = rows.norm(dim=1)
    correlations = rows @ rows.T / (lengths[:, None] * lengths)
    correlations = torch.nan_to_num(correlations, nan=1.0)  # a network that ignores its input: all rows alike
    values = torch.linalg.eigvalsh(correlations).clamp_min(0) + SMALLEST
    return -float((values.log() + 1 / values).sum())


@torch.no_grad()
def naswot(model: nn.Module, images: Tensor) -> float:
    """Return ln |K|, K[i, j] the number of units that are on for both images i and j or off for both.

    A unit is one output of a ReLU (of any activation that is bent at or near 0), on where its input is positive
    (Mellor et al. 2021, "Neural architecture search without training", eq. 1-2). K is positive semi-definite;
    eigenvalues below 1e-5 count as that. Images (N, C, H, W); the model is left as it is.

    Raises:
        InputError: the network has no such activation.
    """
    with _batch_statistics(model), _Agreement(len(images)) as agreement:
        model(images.clone())
    if not bool(agreement.kernel.any()):
        raise InputError("naswot: the network has no ReLU or similar activation; use another score")
    values = torch.linalg.eigvalsh(agreement.kernel)
    return float(values.clamp_min(SMALLEST).log().sum())


class _Agreement(TorchDispatchMode):
    """Sums up over activations how many of their units two images agree on; functions are met as well as modules."""

    def __init__(self, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernel = torch.zeros(batch, batch, dtype=torch.float64)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _UNITS and len(args[0]) == len(self.kernel):
            on = (args[0] > 0).flatten(1).float()
            self.kernel += (on @ on.T + (1 - on) @ (1 - on).T).double().cpu()
        return func(*args, **(kwargs or {}))


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def _linearised(model: nn.Module) -> nn.Module:
    """Return a float64 copy on the CPU with absolute weights, no biases, and norms and activations that do nothing."""
    linear = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            parameter.requires_grad_(True)
            _ = parameter.zero_() if name.endswith("bias") else parameter.abs_()
    for module in linear.modules():
        if isinstance(module, (*_NORMS, *_ACTIVATIONS)):
            vars(module)["forward"] = _same
    return linear


def _same(x: Tensor) -> Tensor:
    return x


@contextmanager
def _batch_statistics(model: nn.Module, mode: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Run `model` in eval mode or `mode`, but batch norms on the batch's own statistics, which they do not remember."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    try:
        with mode or evaluating(model):
            for norm in norms:
                norm.training, norm.momentum = True, 0.0
            yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
