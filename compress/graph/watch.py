"""How a model is run when its operations are looked at, one by one: nothing fused, nothing left behind."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.core.kept_state import state_kept
from compress.graph.attention import NarrowAttention

Caches = Mapping[str, Mapping[str, Any]]
"""Of modules by name, the attributes that keep what a pass computed, and what they are without it: None or {}."""


@contextlib.contextmanager
def watched(model: nn.Module, caches: Caches | None = None) -> Iterator[None]:
    """Run `model` without gradients and without kernels that hide what an attention computes; nothing leaves a trace.

    What it draws, counts, caches or estimates in the block is gone afterwards. torch's attention layers are traced in
    the form that they have once they are narrowed, its LSTMs step by step. `caches` are empty when the block begins.
    """
    with state_kept(model), _looked_at(model):
        emptied(model, caches or {})
        yield


def emptied(model: nn.Module, caches: Caches) -> None:
    """Let `model`, of which blocks may be gone, hold nothing in these attributes."""
    modules = dict(model.named_modules()) if caches else {}
    for name, attributes in caches.items():
        for attribute, nothing in attributes.items() if name in modules else ():
            setattr(modules[name], attribute, copy.copy(nothing))


@contextlib.contextmanager
def _looked_at(model: nn.Module) -> Iterator[None]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    fused = [module for module in model.modules() if holds_scale(module) and module.fused_attn]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        with (
            torch.random.fork_rng(devices=[]),
            NarrowAttention.standing_in(model.modules()),
            _step_by_step(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


@contextlib.contextmanager
def _step_by_step(model: nn.Module) -> Iterator[None]:
    """Let LSTMs on the CPU compute by elementary operations, as torch's other recurrent layers do by themselves."""
    fused: list[bool] = []

    def enter(*_: Any) -> None:
        fused.append(torch.backends.mkldnn.enabled)  # type: ignore[arg-type]
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]

    def leave(*_: Any) -> None:
        torch.backends.mkldnn.enabled = fused.pop()  # type: ignore[assignment]

    handles = []
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def holds_scale(module: nn.Module) -> bool:
    """Return whether an attention can be told to use its stored scale instead of 1/sqrt(head width)."""
    return hasattr(module, "fused_attn") and isinstance(getattr(module, "scale", None), (float, Tensor))
