"""Training and evaluation modes, kept for each module: a frozen batch norm in a model under training stays frozen."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from compress.core.tensors import Inputs, call, called, tensors_in


@contextmanager
def as_imported(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Run the block with torch as it is when it is imported, whatever the caller has set.

    Inference tensors cannot be trained, a default device is one where we count and index, and autocast takes digits
    from numbers that are compared. `dtype` is that of new floats; None: the caller's.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if dtype is not None:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(dtype)
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module of `model` back the mode it has now when the block ends."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training is not mode:
                module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with all of `model` in evaluation mode."""
    with modes_kept(model):
        if any(module.training for module in model.modules()):
            model.eval()
        yield


@contextmanager
def training_flow(model: nn.Module) -> Iterator[None]:
    """Run the block with the control flow of training (auxiliary heads), but without its effects.

    Modules with children are in training mode; layers (dropout, batch norm, drop path) stay in evaluation mode, so
    nothing is drawn at random and no statistics are renewed.
    """
    with modes_kept(model):
        for module in model.modules():
            module.training = next(module.children(), None) is not None and not hasattr(module, "running_mean")
        yield


@contextmanager
def training_code(model: nn.Module) -> Iterator[None]:
    """Run the block with the code of training: noise, stochastic depth, auxiliary heads, states that training renews.

    Layers that torch provides, and what is derived from its dropouts and batch norms, stay in evaluation mode. Draws
    are the same each time; generators (on the CPU) are afterwards what they were.
    """
    with modes_kept(model), _seeded():
        for module in model.modules():
            module.training = not is_layer_of_torch(module)
        yield


def is_layer_of_torch(module: nn.Module) -> bool:
    """Return whether torch provides a layer: one without others inside, or any derived from its dropouts and norms."""
    if isinstance(module, (_DropoutNd, _NormBase)):
        return True
    return type(module).__module__.startswith("torch.") and next(module.children(), None) is None


@contextmanager
def _seeded() -> Iterator[None]:
    """Let all generators on the CPU begin at 0: torch's, Python's and NumPy's."""
    plain, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)


def draws_at_random(model: nn.Module, inputs: Inputs) -> bool:
    """Return whether `model` gives other outputs for the same `inputs` in evaluation mode; generators stay as they are.

    What it gives is compared with what it gives after other draws of torch's generator on the CPU.
    """
    return answered_twice(model, inputs)[1]


@torch.no_grad()
def answered_twice(model: nn.Module, inputs: Inputs) -> tuple[Any, bool]:
    """Return what `model` gives for `inputs`, and whether it gives something else the next time: `draws_at_random`."""
    answers, given = [], None
    with torch.random.fork_rng(devices=[]), evaluating(model):
        for seed in (0, 1):
            torch.default_generator.manual_seed(seed)
            given = call(model, inputs)
            answers.append([each.detach().clone() for each in tensors_in(given)])
    pairs = list(zip(*answers, strict=False))
    return given, len(answers[0]) != len(answers[1]) or not all(_alike(*pair) for pair in pairs)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs are the same but for rounding (kernels may add up in another order)."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    one, other = one.double(), other.double()
    finite = one[one.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5 * largest, equal_nan=True)


@torch.no_grad()
def run_once(model: nn.Module, inputs: Any, hooks: Iterable[RemovableHandle]) -> None:
    """Call `model` in evaluation mode, for the sake of `hooks`, which are removed afterwards."""
    try:
        with evaluating(model):
            called(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
