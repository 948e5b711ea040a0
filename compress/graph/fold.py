"""Which batch norms can be folded into the layer before them; found by watching one forward pass."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.core.kept_state import state_kept
from compress.core.modes import evaluating
from compress.core.tensors import Inputs, call

FOLDABLE = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def foldable_pairs(model: nn.Module, example_inputs: Inputs) -> tuple[tuple[str, str], ...]:
    """Return (layer, batch norm) names where the norm is all that ever reads the layer's output.

    Layers that change their weight in the forward pass (weight standardisation), that run twice, or norms without
    running statistics are left out.
    """
    watch = _Watch()
    with state_kept(model), evaluating(model), torch.no_grad(), _hooks(model, watch), watch:
        call(model, example_inputs)
    runs = Counter(name for name, _ in watch.outputs.values())
    norms = Counter(norm for norm, _ in watch.norms)
    once = {tensor: name for tensor, (name, _) in watch.outputs.items() if runs[name] == watch.uses[tensor] == 1}
    return tuple((once[tensor], norm) for norm, tensor in watch.norms if tensor in once and norms[norm] == 1)


class _Watch(TorchDispatchMode):
    """Counts the operations that read each tensor; keeps the outputs of layers alive so that ids stay unique."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: Counter[int] = Counter()
        self.outputs: dict[int, tuple[str, Tensor]] = {}
        self.norms: list[tuple[str, int]] = []  # name and id of the input; 0: it is no layer's output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.uses.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _hooks(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if any(getattr(type(module), "forward", None) is forward for forward in FOLDABLE) or _pads_only(module):
            handles.append(module.register_forward_hook(_noted(name, watch)))
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(_read(name, watch)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pads_only(module: nn.Module) -> bool:
    """Return whether a convolution pads like TensorFlow and is plain otherwise."""
    return type(module).__name__ == "Conv2dSame"


def _noted(name: str, watch: _Watch) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        watch.outputs[id(output)] = name, output
        watch.uses[id(output)] = 0

    return hook


def _read(name: str, watch: _Watch) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        watch.norms.append((name, id(args[0]) if id(args[0]) in watch.outputs else 0))

    return hook
