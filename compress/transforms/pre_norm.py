"""Pre-norm transformer blocks in a row, and the two branches by which each of them adds to the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.modes import evaluating, run_once
from compress.core.tensors import Inputs


class NoRow(nn.Module):
    """What does more with blocks than run them one after another, so that nothing may take the blocks out of it."""

    why_no_row: ClassVar[str]
    """A sentence about the model that holds it."""


@dataclass(frozen=True)
class Row:
    """An `nn.Sequential` of pre-norm blocks in a model: its name, and what went into it for the example inputs."""

    name: str
    blocks: nn.Sequential
    inputs: Tensor

    @property
    def width(self) -> int:
        """Channels of the residual stream, its last dimension."""
        return self.inputs.shape[-1]


def branches(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what attention and MLP of `block` add to the stream x (..., d), each like x: x + attention + MLP is next.

    Layer scale and stochastic depth are part of a branch. Known are the blocks of timm (`norm1`, `attn`, `norm2`,
    `mlp`) and torchvision (`ln_1`, `self_attention`, `ln_2`, `mlp`).

    Raises:
        InputError: it is another kind of block.
    """
    part: Any = block
    if all(hasattr(block, name) for name in ("ln_1", "self_attention", "ln_2", "mlp")):
        normed = part.ln_1(x)
        attended = part.dropout(part.self_attention(normed, normed, normed, need_weights=False)[0])
        return attended, part.mlp(part.ln_2(x + attended))
    if not all(hasattr(block, name) for name in ("norm1", "attn", "norm2", "mlp")):
        raise InputError(f"{type(block).__name__} is no transformer block with norm1, attn, norm2 and mlp")
    attend = part._attn if hasattr(block, "_attn") else part.attn  # timm's Swin: with its windows around it
    attended = _scaled(block, "1", attend(part.norm1(x)))
    return attended, _scaled(block, "2", part.mlp(part.norm2(x + attended)))


def _scaled(block: nn.Module, number: str, x: Tensor) -> Tensor:
    """Return `x` after layer scale and stochastic depth, where the block has them."""
    for name in (f"ls{number}", f"drop_path{number}", "stochastic_depth"):
        layer = getattr(block, name, None)
        if layer is not None:
            x = layer(x)
    return x


def rows_of(model: nn.Module, example_inputs: Inputs) -> list[Row]:
    """Return every row of pre-norm blocks that `model` runs as a whole, in the order of the passes.

    What a block gives has been compared with its input and its branches.

    Raises:
        InputError: there is none, or what holds the blocks does more with them; the message says why, as far as that is
            known.
    """
    for module in model.modules():
        if isinstance(module, NoRow):
            raise InputError(module.why_no_row)
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and len(module):

            def note(_: nn.Module, args: Any, name: str = name) -> None:
                if len(args) == 1 and isinstance(args[0], Tensor):
                    seen[name] = args[0].clone()

            hooks.append(module.register_forward_pre_hook(note))
    run_once(model, example_inputs, hooks)
    found: list[Row] = []
    reason = "none of its nn.Sequential holds blocks that add attn(norm1(x)) and then mlp(norm2(x)) to x"
    for name, inputs in seen.items():
        row = Row(name, model.get_submodule(name), inputs)  # type: ignore[arg-type]
        fault = _fault(model, row)
        if fault is None:
            found.append(row)
        elif fault:
            reason = fault
    if not found:
        raise InputError(f"the model has no pre-norm transformer blocks in a row: {reason}")
    return found


def _fault(model: nn.Module, row: Row) -> str | None:
    """Return None for a row of pre-norm blocks, "" for other layers, or why blocks that look like such are none."""
    x = row.inputs
    with evaluating(model), torch.no_grad():
        for place, block in enumerate(row.blocks):
            try:
                attended, mixed = branches(block, x)
                after = block(x)
            except (InputError, RuntimeError, TypeError, ValueError, AttributeError):
                return ""
            if after.shape != x.shape or not torch.allclose(after, x + attended + mixed, rtol=1e-4, atol=1e-5):
                return f"block {row.name}.{place} gives something else than x plus attn(norm1(x)) and mlp(norm2(x))"
            x = after
        whole = row.blocks(row.inputs)
    if not isinstance(whole, Tensor) or whole.shape != x.shape or not torch.allclose(whole, x, rtol=1e-4, atol=1e-5):
        return f"{row.name} ({type(row.blocks).__name__}) does more than run its blocks one after another"
    return None


def replaced(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put `module` at `name` into `model`, in place; return the model."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module
    return model
