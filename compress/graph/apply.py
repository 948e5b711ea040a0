"""Carry out a plan: give the small module, without touching or duplicating the large one."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compress.core.copies import copied
from compress.core.errors import InputError
from compress.core.wrappers import unwrapped
from compress.graph.attention import NarrowAttention
from compress.graph.plan import Plan


class PassThrough(nn.Module):
    """Stands where a residual block was: returns its first argument."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `x` as it is, whatever else the block was given."""
        return x


@torch.inference_mode(False)  # whose tensors could not be trained
def apply(plan: Plan, model: nn.Module, shared: Collection[str] = ()) -> nn.Module:
    """Return the module that `plan` makes of `model`; `model` itself stays as it is.

    Only what stays is copied. Applied to the freshly built base module it gives the shapes into which the weights of
    a bundle fit; applied to the trained module it gives the trained small one.

    Args:
        plan: what is removed.
        model: what it is removed from.
        shared: names of tensors that the two modules have in common where the plan leaves them whole: for a small one
            that is only looked at.

    Raises:
        InputError: the plan was made for another architecture; the tensor or layer is named.
    """
    if not isinstance(plan, Plan):
        raise InputError(f"plan: got a {type(plan).__name__}; allowed a plan, such as compress.plan makes")
    model = unwrapped(model)
    if plan.folded:
        model = copied(model)
        fold_batch_norms(model, plan.folded)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    memo: dict[int, Any] = {id(tensors[name]): tensors[name] for name in shared}
    taken = _Positions()
    for name, dims in plan.kept.items():
        if name not in tensors:
            raise InputError(f"the plan narrows {name!r}, which the model does not have: it is of another architecture")
        memo[id(tensors[name])] = _narrowed(name, tensors[name], dims, plan.sizes.get(name, {}), taken)
    for name in plan.dropped:
        memo[id(_module(model, name))] = PassThrough()
    try:
        small = copied(model, memo)
    except TypeError as error:  # a lock, a file, a stream among its attributes
        raise InputError(f"the model cannot be copied: {error}; keep such things out of its attributes") from error
    for name, module in small.named_modules():
        if isinstance(module, nn.MultiheadAttention) and any(tensor.startswith(f"{name}.") for tensor in plan.kept):
            NarrowAttention.free(module)
    for name, attributes in plan.attributes.items():
        module = _module(small, name)
        for attribute, value in attributes.items():
            setattr(module, attribute, copy.copy(like(getattr(module, attribute, None), value)))
    return small


def like(old: Any, value: Any) -> Any:
    """Return several numbers in a list or (named) tuple such as `old`, which they replace; another value as it is."""
    if not isinstance(value, (tuple, list)) or not isinstance(old, (tuple, list)):
        return value
    return type(old)(*value) if hasattr(old, "_fields") else type(old)(value)


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the plan names layer {name!r}, which the model does not have") from None


class _Positions:
    """The positions that stay as tensors; those of one width are shared by many tensors of a plan."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, torch.device], tuple[tuple[int, ...], int, Tensor]] = {}

    def of(self, indices: tuple[int, ...], device: torch.device) -> tuple[int, Tensor]:
        """Return the largest position (-1: there is none) and all of them as a tensor."""
        key = id(indices), device
        if key not in self._made:
            tensor = torch.tensor(indices, device=device, dtype=torch.long)
            self._made[key] = indices, max(indices, default=-1), tensor
        return self._made[key][1:]


def _narrowed(
    name: str, tensor: Tensor, dims: Mapping[int, tuple[int, ...]], sizes: Mapping[int, int], taken: _Positions
) -> Tensor:
    small = tensor.detach()
    for dim, indices in dims.items():
        largest, positions = taken.of(indices, tensor.device)
        if dim >= small.dim() or largest >= small.shape[dim]:
            raise InputError(
                f"the plan keeps position {largest} of dimension {dim} of {name!r}, "
                f"whose shape is {tuple(tensor.shape)}: it is of another architecture"
            )
        if sizes.get(dim, small.shape[dim]) != small.shape[dim]:
            raise InputError(
                f"the plan is for {sizes[dim]} positions of dimension {dim} of {name!r}, whose shape is "
                f"{tuple(tensor.shape)}: it is of another architecture"
            )
        small = small.index_select(dim, positions)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(small, requires_grad=tensor.requires_grad)
    return small


def fold_batch_norms(model: nn.Module, pairs: tuple[tuple[str, str], ...]) -> None:
    """Fold each batch norm into the convolution or linear layer before it, in place (evaluation statistics).

    A timm norm that carries its activation keeps it; a plain one becomes the identity.
    """
    for layer_name, norm_name in pairs:
        layer, norm = _module(model, layer_name), _module(model, norm_name)
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)  # type: ignore[arg-type]
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        parent, _, leaf = norm_name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Sequential(*rest) if rest else nn.Identity())
