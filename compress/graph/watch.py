"""How a model is run when its operations are looked at, one by one: nothing fused, nothing left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.graph.attention import NarrowAttention


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Run `model` without gradients and without kernels that hide what an attention computes; draws leave no trace.

    torch's attention layers are traced in the form that they have once they are narrowed.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    fused = [module for module in model.modules() if holds_scale(module) and module.fused_attn]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        with (
            torch.random.fork_rng(devices=[]),
            NarrowAttention.standing_in(model.modules()),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def holds_scale(module: nn.Module) -> bool:
    """Return whether an attention can be told to use its stored scale instead of 1/sqrt(head width)."""
    return hasattr(module, "fused_attn") and isinstance(getattr(module, "scale", None), (float, Tensor))
