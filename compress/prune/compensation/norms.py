"""Batch norms around a solve: folded into the layer before them, and unfolded again for training.

A layer and the norm that alone reads it are one affine map in evaluation, y = a (W x + b) + c, and that is what is
solved for. It is written back as a layer whose rows are as long as before and a norm that makes up for it, so that the
learning rate means the same for it (shared wisdom of scale-invariant weights: the effective rate goes with
1 / ||W||^2); then running statistics are made those that the layer really has, without a change of what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.core.batch_norm import norm_layers
from compress.core.modes import evaluating
from compress.criteria.consumers import Reader, matrix


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift (channels,) of a batch norm in evaluation, float64."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    weight = torch.ones_like(deviation) if norm.weight is None else norm.weight.detach().double()
    bias = torch.zeros_like(deviation) if norm.bias is None else norm.bias.detach().double()
    scale = weight / deviation
    return scale, bias - scale * norm.running_mean.double()


def can_unfold(norm: nn.Module) -> bool:
    """Return whether a batch norm can take over scale and shift of what is solved for."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.weight is not None


def folded(layer: Reader, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the matrix (groups, outputs, d) and the shift (groups, outputs) of a layer and its norm, float64."""
    weight = matrix(layer)
    bias = weight.new_zeros(weight.shape[:2])
    if layer.bias is not None:
        bias = layer.bias.detach().double().reshape(bias.shape)
    if norm is None:
        return weight, bias
    scale, shift = (each.reshape(bias.shape) for each in affine(norm))
    return weight * scale[..., None], bias * scale + shift


def write(layer: Reader, norm: nn.Module | None, weight: Tensor, bias: Tensor) -> None:
    """Let a layer and its norm compute `weight` (groups, outputs, d) and `bias` (groups, outputs).

    With a norm, the rows of the layer keep their lengths. Parameters are new ones: the old may be another model's.
    """
    if norm is None:
        _put(layer, "weight", weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            _put(layer, "bias", bias.flatten())
        return
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    lengths, new = matrix(layer).norm(dim=2), weight.norm(dim=2)
    scale = torch.where((new > 0) & (lengths > 0), lengths / new, 1.0)
    _put(layer, "weight", (weight * scale[..., None]).reshape(layer.weight.shape))
    if layer.bias is not None:
        _put(layer, "bias", torch.zeros_like(bias).flatten())
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    _put(norm, "weight", deviation / scale.flatten())
    _put(norm, "bias", bias.flatten() + norm.running_mean.double() / scale.flatten())


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    old: nn.Parameter = getattr(module, name)
    setattr(module, name, nn.Parameter(value.to(old.dtype).contiguous(), requires_grad=old.requires_grad))


class Settling:
    """Collects mean and variance of what batch norms read, and makes them the running statistics.

    Scale and shift follow, so that the model computes in evaluation what it did; in training it then starts there.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [norm for norm in norm_layers(model) if can_unfold(norm)]
        self._sums: dict[nn.Module, list[Any]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect what goes through the norms in the block."""
        handles = [norm.register_forward_pre_hook(self._read) for norm in self.norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, norm: nn.Module, args: Any) -> None:
        values = args[0].detach()
        over = [dim for dim in range(values.dim()) if dim != 1]
        count = values.numel() // values.shape[1]
        mean = values.mean(over, dtype=torch.float64)
        square = (values - mean.to(values.dtype).reshape([-1 if d == 1 else 1 for d in range(values.dim())])).square()
        second = square.mean(over, dtype=torch.float64) + mean.square()
        old = self._sums.setdefault(norm, [0, 0.0, 0.0])
        self._sums[norm] = [old[0] + count, old[1] + count * mean, old[2] + count * second]

    def settle(self) -> int:
        """Write the statistics; return how many norms have them."""
        for norm, (count, total, squares) in self._sums.items():
            assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
            mean = total / count
            variance = (squares / count - mean.square()).clamp(min=0.0)
            scale, shift = affine(norm)
            deviation = (variance + norm.eps).sqrt()
            _put(norm, "weight", scale * deviation)
            _put(norm, "bias", shift + scale * mean)
            norm.running_mean = mean.to(norm.running_mean.dtype)
            norm.running_var = variance.to(norm.running_var.dtype)
        return len(self._sums)


def settle_norms(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> int:
    """Make the running statistics of all batch norms those of `batches`, and change nothing that the model computes."""
    settling = Settling(model)
    if settling.norms:
        with evaluating(model), torch.no_grad(), settling.watching():
            for batch in batches:
                forward(model, batch)
    return settling.settle()
