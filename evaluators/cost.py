"""Parameters and multiply-accumulates (MACs), of dense models and of models under masks.

One multiply-accumulate counts as one. Counted are convolutions, linear layers and matrix products, those of attention
included (the same whether or not the attention is fused); normalisation, activations and biases are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

Masks = Mapping[str, Tensor]


def count_params(model: nn.Module, masks: Masks | None = None) -> tuple[int, int]:
    """Return (parameters, parameters that no mask removes); `masks` maps parameter names to True where kept."""
    total = sum(parameter.numel() for parameter in model.parameters())
    removed = sum(mask.numel() - int(mask.sum()) for mask in (masks or {}).values())
    return total, total - removed


def count_macs(model: nn.Module, example_inputs: Tensor) -> int:
    """Return the MACs for one image of the shape of `example_inputs` (N, C, H, W)."""
    with _quiet(model), FlopCounterMode(display=False) as counter:
        model(example_inputs[:1])
    return int(counter.get_total_flops()) // 2


def layer_macs(model: nn.Module, example_inputs: Tensor) -> dict[str, int]:
    """Return the MACs for one image of every module that computes any itself, not through a child.

    Attention's two matrix products are the attention module's own.
    """
    return dict(_attribute(model, example_inputs).by_module)


def parameter_macs(model: nn.Module, example_inputs: Tensor) -> dict[str, int]:
    """Return the MACs for one image that every parameter takes part in, by parameter name."""
    return dict(_attribute(model, example_inputs).by_parameter)


def nonzero_macs(model: nn.Module, example_inputs: Tensor, masks: Masks) -> int:
    """Return the layer-resolved MACs under masks: every layer's MACs times the kept share of its weight.

    Weights of early, large layers count for more than their number; see `uniform_equivalent_macs` for the other count.
    """
    found = _attribute(model, example_inputs)
    removed = sum(found.by_parameter.get(name, 0) * (1 - _kept(mask)) for name, mask in masks.items())
    return round(found.total - removed)


def uniform_equivalent_macs(model: nn.Module, example_inputs: Tensor, masks: Masks) -> int:
    """Return the MACs if the masked layers were all equally sparse: what papers on unstructured pruning print.

    The share of removed weights over all masks, times the MACs of the masked layers, is taken off the total.
    """
    found = _attribute(model, example_inputs)
    weights = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    prunable = sum(found.by_parameter.get(name, 0) for name in masks)
    return round(found.total - prunable * (1 - kept / weights)) if weights else found.total


def _kept(mask: Tensor) -> float:
    return int(mask.sum()) / mask.numel() if mask.numel() else 1.0


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Run `model` in eval mode, without gradients and without kernels that hide their matrix products."""
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    for parameter in trained:  # the counter's module tracker asks for the history of tokens that are parameters
        parameter.requires_grad_(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


@dataclass
class _Attribution:
    total: int = 0
    by_module: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_parameter: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class _Attributor(TorchDispatchMode):
    """Gives the MACs of every operator to the running module and to the parameter among its arguments."""

    def __init__(self, model: nn.Module, counter: FlopCounterMode, found: _Attribution) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter, self.found = counter, found
        self.running: list[str] = [""]
        self.modules = dict(model.named_modules())
        # a transposed or reshaped weight is a view: it keeps the parameter's storage
        self.owners = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        macs = (self.counter.get_total_flops() - before) // 2
        if macs:
            self.found.by_module[self.running[-1]] += macs
            owner = self._owner(args)
            if owner is not None:
                self.found.by_parameter[owner] += macs
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


def _attribute(model: nn.Module, example_inputs: Tensor) -> _Attribution:
    """Run one image through `model` and return who computed what."""
    found = _Attribution()
    with _quiet(model), FlopCounterMode(display=False) as counter, _Attributor(model, counter, found) as mode:
        hooks = [hook for name, module in model.named_modules() for hook in _watch(module, name, mode.running)]
        try:
            model(example_inputs[:1])
        finally:
            for hook in hooks:
                hook.remove()
    found.total = counter.get_total_flops() // 2
    return found
