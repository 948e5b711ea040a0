"""What attention layers look at: the scores of queries and keys, recomputed from what a layer receives.

Fused kernels do not give them away. Whether a recomputation is right is tried out on the layer itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.special import entr

from compress.core.errors import InputError, did_you_mean
from compress.distill.losses import Sides
from compress.distill.matching import leading, tensor_of


@dataclass(frozen=True)
class Attention:
    """An attention layer of a model whose scores can be told.

    Attributes:
        name: of the layer.
        layer: the module.
        block: the module that it is part of.
        sizes: heads, queries and keys of its scores.
        windows: that a sample is cut into; 1: none.
        prefix: leading tokens without a place in the image.
    """

    name: str
    layer: nn.Module
    block: nn.Module
    sizes: tuple[int, ...]
    windows: int
    prefix: int

    def scores(self, received: Tensor) -> Tensor:
        """Return q kᵀ · scale plus the layer's biases, before the softmax: float32 (N · windows, heads, queries, keys).

        Args:
            received: what the layer was called with, (N · windows, tokens, width).
        """
        return recomputed(self.layer, self.block, received)[0]


def attention_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers of `model` that have the form of multi-head attention, as they are defined."""
    return [name for name, module in model.named_modules() if name and _is_attention(module)]


def attentions(sides: Sides, model: nn.Module, globs: list[str] | None, key: str, whose: str) -> list[Attention]:
    """Return the attention layers of `model` that match one of `globs`, or lie in a module that does; None: all.

    Raises:
        InputError: the model has none, a glob finds none, or a layer computes its scores in a way of its own.
    """
    names = attention_layers(model)
    if not names:
        raise InputError(f"{key}: {whose} has no attention layer, and so no attention maps")
    for glob in globs or []:
        if not any(_under(name, glob) for name in names):
            raise InputError(f"{key}: no attention layer of {whose} matches {glob!r}{did_you_mean(glob, names)}")
    names = [name for name in names if globs is None or any(_under(name, glob) for glob in globs)]
    seen = sides.look(model, names)
    return [_tried(sides, model, name, seen.received[name], seen.features[name], key, whose) for name in names]


def recomputed(layer: Any, block: nn.Module, received: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of a layer, and what it should give, (N, tokens, width), if these are right."""
    with torch.autocast(received.device.type, enabled=False):
        torchs = isinstance(layer, nn.MultiheadAttention)
        swapped = torchs and not layer.batch_first
        x = (received.transpose(0, 1) if swapped else received).float()
        q, k, v = (each.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for each in _projected(layer, x))
        q, k = (getattr(layer, f"{kind}_norm", nn.Identity())(each) for kind, each in (("q", q), ("k", k)))
        scores = q @ k.transpose(-2, -1) * getattr(layer, "scale", q.shape[-1] ** -0.5)
        if hasattr(layer, "_get_rel_pos_bias"):
            scores = scores + layer._get_rel_pos_bias()
        mask = getattr(block, "attn_mask", None)  # of Swin's shifted windows
        if isinstance(mask, Tensor) and mask.ndim == 3 and len(scores) % len(mask) == 0:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        out = layer.out_proj(mixed) if torchs else layer.proj(getattr(layer, "norm", nn.Identity())(mixed))
        return scores, out.transpose(0, 1) if swapped else out


def normalized_mutual_information(attention: Tensor) -> Tensor:
    """Return the mutual information of queries and keys in parts of the mean of both entropies, for every matrix.

    Park et al., "What Do Self-Supervised Vision Transformers Learn?", 2023: 1 where every query looks at a key of its
    own, 0 where all look at the same.

    Args:
        attention: (..., queries, keys), every row sums up to 1.
    """
    rows = attention.float()
    keys: Tensor = entr(rows.mean(-2)).sum(-1)
    between: Tensor = keys - entr(rows).sum(-1).mean(-1)
    queries = torch.log(torch.tensor(float(rows.shape[-2])))
    return between / (queries * keys).sqrt().clamp_min(1e-12)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) ‖ softmax(student)) over the keys, averaged over everything else, a scalar.

    Both are scores (N, heads, queries, keys).
    """
    ours, theirs = (each.log_softmax(-1) for each in (student, teacher))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / student[..., 0].numel()


def _tried(sides: Sides, model: nn.Module, name: str, received: Any, given: Any, key: str, whose: str) -> Attention:
    layer, title = model.get_submodule(name), f"layer {name} of {whose}"
    block = model.get_submodule(name.rpartition(".")[0])
    gave = tensor_of(given, title).float()
    wrong = f"{key}: {title} ({type(layer).__name__}) has scores that cannot be recomputed from its queries and keys"
    try:
        with torch.no_grad():
            scores, expected = recomputed(layer, block, tensor_of(received, title))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise InputError(wrong) from error
    if gave.shape != expected.shape or float((gave - expected).abs().max()) > 1e-3 * float(gave.abs().max()) + 1e-6:
        raise InputError(wrong)
    windows = len(scores) // 2  # of two samples
    prefix = leading(model, scores.shape[-2], sides.task.input_size)[0] if windows == 1 else 0
    return Attention(name, layer, block, tuple(scores.shape[1:]), windows, prefix)


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return True
    heads = getattr(module, "num_heads", None)
    apart = all(isinstance(getattr(module, f"{each}_proj", None), nn.Linear) for each in "qkv")
    one = isinstance(getattr(module, "qkv", None), nn.Module)
    return isinstance(heads, int) and (apart or one) and isinstance(getattr(module, "proj", None), nn.Module)


def _projected(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each (N, tokens, heads · width of a head)."""
    if isinstance(layer, nn.MultiheadAttention):
        return cast(tuple[Tensor, Tensor, Tensor], F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1))
    if getattr(layer, "qkv", None) is not None:
        return cast(tuple[Tensor, Tensor, Tensor], layer.qkv(x).chunk(3, -1))
    return layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)


def _under(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}.*")
