"""Torch's own multi-head attention with heads, head widths and a stream of any size.

`nn.MultiheadAttention` insists that heads x head width is the width of the stream and takes its scale from the width
of a head. After pruning neither holds: the layer keeps its parameters and its scale, and computes by their shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowAttention(nn.MultiheadAttention):
    """Multi-head attention whose sizes are those of its parameters; made of a torch layer by `free`."""

    scale: float

    @classmethod
    def free(cls, layer: nn.MultiheadAttention) -> None:
        """Turn a layer of torch's class into this one, in place; what it computes stays the same."""
        if type(layer) is nn.MultiheadAttention:
            layer.scale = layer.head_dim**-0.5
            layer._qkv_same_embed_dim = False  # else torch's encoder layers call a fused kernel of fixed sizes
            layer.__class__ = cls

    @classmethod
    @contextmanager
    def standing_in(cls, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Let torch's attention layers among `modules` compute by this class's forward inside the block."""
        layers = [module for module in modules if type(module) is nn.MultiheadAttention]
        packed = [layer._qkv_same_embed_dim for layer in layers]
        try:
            for layer in layers:
                cls.free(layer)
            yield
        finally:
            for layer, was in zip(layers, packed, strict=True):
                layer.__class__, layer._qkv_same_embed_dim = nn.MultiheadAttention, was
                del layer.scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and the weights, as torch's layer does with the same arguments."""
        batched, batch = query.dim() == 3, 0 if self.batch_first else 1
        if not batched:
            query, key, value = (x.unsqueeze(batch) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = self._projected(*(x.transpose(0, batch) for x in (query, key, value)))
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            attended = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            hinted = is_causal and key_padding_mask is None  # then torch goes by the hint, not by the mask
            seen = None if hinted else mask
            attended = F.scaled_dot_product_attention(q, k, v, seen, dropout, hinted, scale=self.scale)
        out = self.out_proj(attended.transpose(1, 2).flatten(2)).transpose(0, batch)
        return (out if batched else out.squeeze(batch)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (N, heads, positions, width of a head)."""
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if apart[0] is not None else self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return both masks as what is added to the scores (N, heads, queries, keys); None without a mask."""
        masks = []
        if attn_mask is not None:
            several = attn_mask.dim() == 3
            masks.append(
                attn_mask.reshape(-1, self.num_heads, *attn_mask.shape[1:]) if several else attn_mask[None, None]
            )
        if padding is not None:
            masks.append(padding[:, None, None, :])
        if not masks:
            return None
        added = [
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
            for mask in masks
        ]
        total = sum(added[1:], added[0]).to(q.dtype)
        return F.pad(total, (0, k.shape[-2] - total.shape[-1]))  # keys that the layer adds itself are seen
