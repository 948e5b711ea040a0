"""Parameters and multiply-accumulates (MACs), of dense models and of models under masks.

One multiply-accumulate counts as one. Counted are convolutions, linear and recurrent layers and matrix products, those
of attention included (the same whether or not the attention is fused); normalisation, activations and biases are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from compress.core.kept_state import state_kept
from compress.core.meta import ShapesAlone
from compress.core.modes import evaluating
from compress.core.tensors import Inputs, call

aten = torch.ops.aten
Masks = Mapping[str, Tensor]


def count_params(model: nn.Module, masks: Masks | None = None) -> tuple[int, int]:
    """Return (parameters, parameters that no mask removes); `masks` maps parameter names to True where kept."""
    total = sum(parameter.numel() for parameter in model.parameters())
    removed = sum(mask.numel() - int(mask.sum()) for mask in (masks or {}).values())
    return total, total - removed


def count_macs(model: nn.Module, example_inputs: Inputs) -> int:
    """Return the MACs for one image of the shape of `example_inputs` (N, ...); of several inputs, for all as given."""
    shapes = any(parameter.is_meta for parameter in model.parameters())
    with _quiet(model), _counter() as counter, ShapesAlone() if shapes else nullcontext():
        call(model, _one(example_inputs))
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Macs:
    """The MACs for one image: all of them, and those that each parameter takes part in, by its name."""

    total: int
    of_parameter: Mapping[str, int]

    def nonzero(self, masks: Masks) -> int:
        """Return the layer-resolved MACs under masks: every layer's MACs times the kept share of its weight.

        Weights of early, large layers count for more than their number; `uniform_equivalent` is the other count.
        """
        removed = sum(self.of_parameter.get(name, 0) * (1 - _kept(mask)) for name, mask in masks.items())
        return round(self.total - removed)

    def uniform_equivalent(self, masks: Masks) -> int:
        """Return the MACs if the masked layers were all equally sparse: what papers on unstructured pruning print.

        The share of removed weights over all masks, times the MACs of the masked layers, is taken off the total.
        """
        weights = sum(mask.numel() for mask in masks.values())
        kept = sum(int(mask.sum()) for mask in masks.values())
        prunable = sum(self.of_parameter.get(name, 0) for name in masks)
        return round(self.total - prunable * (1 - kept / weights)) if weights else self.total


def parameter_macs(model: nn.Module, example_inputs: Inputs) -> Macs:
    """Return the MACs for one image of the shape of `example_inputs` (N, ...), told apart by parameter."""
    with _quiet(model), _counter() as counter, _Attributor(model, counter) as mode:
        hooks = [hook for name, module in model.named_modules() for hook in _watch(module, name, mode.running)]
        try:
            call(model, _one(example_inputs))
        finally:
            for hook in hooks:
                hook.remove()
    return Macs(int(counter.get_total_flops()) // 2, dict(mode.found))


def _kept(mask: Tensor) -> float:
    return int(mask.sum()) / mask.numel() if mask.numel() else 1.0


def _one(inputs: Inputs) -> Inputs:
    """Return one image of a tensor; several inputs as they are, since the first dimension of each need be no batch."""
    return inputs[:1] if isinstance(inputs, Tensor) else inputs


def _counter() -> FlopCounterMode:
    """Return torch's counter, taught the products that it does not know; it counts a multiplication and an addition."""
    formulas: dict[Any, Any] = {
        aten.mv: lambda matrix, vector, **_: 2 * prod(matrix),
        aten.addmv: lambda bias, matrix, vector, **_: 2 * prod(matrix),
        aten.dot: lambda one, other, **_: 2 * prod(one),
        aten.vdot: lambda one, other, **_: 2 * prod(one),
        aten.addbmm: lambda bias, one, other, **_: 2 * prod(one) * other[-1],
        aten.conv_tbc: lambda x, weight, *_, out_shape, **__: 2 * out_shape[0] * out_shape[1] * prod(weight),
        aten.mkldnn_rnn_layer: lambda x, w1, w2, *_, **__: 2 * x[0] * x[1] * (prod(w1) + prod(w2)),
        aten._trilinear: _trilinear,
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # torchvision was imported
        formulas[torch.ops.torchvision.deform_conv2d] = lambda x, weight, *_, out_shape, **__: (
            2 * prod(out_shape) * prod(weight[1:])
        )
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _trilinear(x: Any, weight: Any, y: Any, *_: Any, **__: Any) -> int:
    """Return the flops of `nn.Bilinear`, x (N, I) W (O, I, J) y (N, J): W times y for every x, then times x."""
    return int(2 * x[0] * weight[0] * weight[1] * (weight[2] + 1))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Run `model` in eval mode, without gradients, traces of it, and kernels that hide their matrix products."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    for parameter in trained:  # the counter's module tracker asks for the history of tokens that are parameters
        parameter.requires_grad_(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with state_kept(model), evaluating(model), torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad_(True)


class _Attributor(TorchDispatchMode):
    """Gives the MACs of every operator to the parameter among its arguments."""

    def __init__(self, model: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = counter
        self.found: dict[str, int] = defaultdict(int)
        self.running: list[str] = [""]
        self.modules = dict(model.named_modules())
        # a transposed or reshaped weight is a view: it keeps the parameter's storage
        self.owners = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        macs = (self.counter.get_total_flops() - before) // 2
        if macs:
            owner = self._owner(args)
            if owner is not None:
                self.found[owner] += macs
        return result

    def _owner(self, args: Any) -> str | None:
        """Return the parameter in `args`, or the weight of the running layer that standardises its weight."""
        for arg in args:
            if isinstance(arg, Tensor) and arg.ndim > 1 and arg.untyped_storage().data_ptr() in self.owners:
                return self.owners[arg.untyped_storage().data_ptr()]
        weight = self.modules[self.running[-1]]._parameters.get("weight")
        name = f"{self.running[-1]}.weight".lstrip(".")
        return name if weight is not None and weight.ndim > 1 else None


def _watch(module: nn.Module, name: str, running: list[str]) -> list[RemovableHandle]:
    """Keep the stack of `running` modules up to date."""

    def enter(*_: Any) -> None:
        running.append(name)

    def leave(*_: Any) -> None:
        running.pop()

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
