"""Models that rank values which are exactly equal, as untrained ones do: what they pick is chance, in files as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.core.copies import copied
from compress.core.tensors import Inputs, call

NOISE = 0.1
"""Standard deviation of what is added to parameters, in terms of the root of their mean square and by itself."""


def ranks_equals(module: nn.Module, inputs: Inputs) -> bool:
    """Return whether `module`, in evaluation mode, sorts equal values, or chooses among such, on its way."""
    seen = _Rankings()
    with torch.no_grad(), seen:
        call(module, inputs)
    return seen.equals


def with_noise(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with noise on its parameters, always the same, which tells equal values apart."""
    noisy, generator = copied(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in noisy.parameters():
            if each.is_floating_point() and each.numel():
                scale = NOISE * (1 + float(each.double().square().mean().sqrt()))
                each.add_(scale * torch.randn(each.shape, generator=generator).to(each))
    return noisy


class _Rankings(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.equals = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name, values = func.overloadpacket.__name__, args[0] if args else None
        if name not in ("topk", "sort") or not isinstance(values, Tensor) or not values.dim():
            return out
        place = 2 if name == "topk" else 1
        dim = kwargs.get("dim", args[place] if len(args) > place and name != "sort" else -1)
        ordered = values.movedim(dim, -1).sort(dim=-1, descending=kwargs.get("largest", True)).values
        ordered = ordered[..., : args[1] + 1] if name == "topk" else ordered
        equal = (ordered[..., 1:] == ordered[..., :-1]) & ordered[..., 1:].isfinite()
        self.equals = self.equals or bool(equal.any())
        return out
