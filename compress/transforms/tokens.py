"""Tokens of a vision transformer leave in stages, the deeper the fewer: dropped by attention, or merged by likeness.

Dropping: Xing et al., "PyramidDrop", CVPR 2025, with the class token as the query. Merging: after Bolya et al., "Token
merging: your ViT but faster", ICLR 2023. The number of tokens is a constant at every place, so that exported graphs
have static shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.modes import evaluating
from compress.core.tensors import Inputs
from compress.transforms import Transform, transforms
from compress.transforms.pre_norm import NoRow, Row, replaced, rows_of

Mode = Literal["drop", "merge"]


class _Heads(NamedTuple):
    """Queries or keys of an attention: (N, heads, tokens, width of a head)."""

    queries: Tensor
    keys: Tensor
    scale: float


class TokenStages(NoRow, nn.Sequential):
    """Blocks in a row, before some of which tokens leave: (N, tokens, d) -> (N, fewer, d), in their order."""

    why_no_row: ClassVar[str] = (
        "tokens leave this model already; kind: tokens acts once, and the features are no sum of paths any more"
    )

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        tokens: int,
        left: Mapping[int, int],
        prefix: int,
        has_class: bool,
        mode: Mode,
    ) -> None:
        """Take over `blocks`.

        Args:
            blocks: with `norm1` and `attn`, or torchvision's.
            tokens: how many come in, prefix tokens included.
            left: block number (from 0) -> how many image tokens it gets.
            prefix: tokens at the front that are no image (class token, registers): they always stay.
            has_class: whether the first token asks which ones matter; otherwise the mean image token does.
            mode: `drop` leaves tokens out, `merge` averages the most similar ones.
        """
        super().__init__(*blocks)
        self.tokens, self.prefix, self.has_class, self.mode = tokens, prefix, has_class, mode
        self.left = dict(left)

    def extra_repr(self) -> str:
        """Tell how many image tokens there are from which block on."""
        return f"{self.mode}, image tokens {self.tokens - self.prefix} -> {self.left}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens that are left, after all blocks.

        Raises:
            InputError: there are more or fewer tokens than the stages were made for.
        """
        if int(x.shape[1]) != self.tokens:
            raise InputError(f"tokens leave by number: {self.tokens} have to come in, not {x.shape[1]}")
        count = self.tokens - self.prefix
        sizes = torch.ones_like(x[:, self.prefix :, :1]) if self.mode == "merge" else None
        for place, block in enumerate(self):
            wanted = self.left.get(place, count)
            if wanted < count:
                front, image = x[:, : self.prefix], x[:, self.prefix :]
                if sizes is None:
                    image = kept_by_attention(self._importance(block, x), image, wanted)
                else:
                    image, sizes = self._merged(block, image, sizes, count, wanted)
                x, count = torch.cat([front, image], dim=1), wanted
            x = block(x)
        return x

    def _importance(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return how much the query attends to every image token (N, tokens), by the next block's projections."""
        image = x[:, self.prefix :]
        query = x[:, :1] if self.has_class else image.mean(dim=1, keepdim=True)
        found = projected(block, query, image)
        scores: Tensor = ((found.queries * found.scale) @ found.keys.transpose(-2, -1)).softmax(-1).mean(1)[:, 0]
        return scores

    def _merged(self, block: nn.Module, image: Tensor, sizes: Tensor, count: int, wanted: int) -> tuple[Tensor, Tensor]:
        """Return `wanted` image tokens and how many each stands for; half of them at most leave at a time."""
        while count > wanted:
            count = max(wanted, count - count // 2)
            keys = projected(block, image[:, :1], image).keys.mean(1)
            image, sizes = merged_by_likeness(keys, image, sizes, count)
        return image, sizes


def projected(block: nn.Module, asking: Tensor, asked: Tensor) -> _Heads:
    """Return the queries of `asking` and the keys of `asked`, as the attention of `block` makes them.

    Raises:
        InputError: the attention is of another kind than timm's and PyTorch's.
    """
    part: Any = block
    if hasattr(block, "self_attention"):
        attention, norm = part.self_attention, part.ln_1
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
    else:
        attention, norm = part.attn, part.norm1
        if not isinstance(getattr(attention, "qkv", None), nn.Linear):
            raise InputError(f"{type(attention).__name__} makes queries and keys in another way than one layer qkv")
        weight, bias = attention.qkv.weight, attention.qkv.bias
    heads, wide = attention.num_heads, weight.shape[0] // 3

    def split(x: Tensor, number: int) -> Tensor:
        rows = slice(number * wide, (number + 1) * wide)
        values = F.linear(norm(x), weight[rows], None if bias is None else bias[rows])
        return values.reshape(-1, int(x.shape[1]), heads, wide // heads).transpose(1, 2)

    queries, keys = split(asking, 0), split(asked, 1)
    if hasattr(attention, "q_norm"):
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    return _Heads(queries, keys, float(getattr(attention, "scale", (wide // heads) ** -0.5)))


def kept_by_attention(importance: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Return the `count` most important of `tokens` (N, n, d), in their order; `importance` is (N, n)."""
    places = importance.topk(count, dim=1).indices.topk(count, dim=1, largest=False).values  # TopK takes a constant
    return tokens.gather(1, _across(places, tokens))


def merged_by_likeness(keys: Tensor, tokens: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return tokens (N, count, d) and sizes (N, count, 1): the most similar pairs become their average.

    Every other token looks for the most similar one (cosine of `keys`, (N, n, k)) among those between; as many as have
    to go, those with the most similar partners, become one with them, weighed by `sizes` (N, n, 1). The others keep
    their order.
    """
    weighed = torch.cat([tokens * sizes, sizes], dim=-1)
    unit = F.normalize(keys, dim=-1)
    best, partner = (unit[:, 0::2] @ unit[:, 1::2].transpose(-2, -1)).max(-1)
    asking, asked = weighed[:, 0::2], weighed[:, 1::2]
    number = int(tokens.shape[1])
    order = best.topk((number + 1) // 2, dim=1).indices
    going, staying = order[:, : number - count], order[:, number - count :]
    odd = 0 * order[:, :1] + torch.arange(1, number, 2, device=keys.device)
    asked = asked.scatter_add(1, _across(partner.gather(1, going), asked), asking.gather(1, _across(going, asking)))
    places = torch.cat([2 * staying, odd], dim=1)
    left = torch.cat([asking.gather(1, _across(staying, asking)), asked], dim=1)
    left = left.gather(1, _across(places.topk(count, dim=1, largest=False).indices, left))
    return left[..., :-1] / left[..., -1:], left[..., -1:]


def _across(places: Tensor, tokens: Tensor) -> Tensor:
    """Return `places` (N, k), repeated for every channel of `tokens`: (N, k, d)."""
    return places[..., None].expand(-1, -1, int(tokens.shape[-1]))  # no part of the graph, also to the tracer


def counts_of(tokens: int, keep: float, stages: int) -> list[int]:
    """Return how many image tokens are left in each stage, the floor of tokens * keep^(stage - 1), but 1 at least."""
    return [max(1, int(tokens * keep**stage + 1e-9)) for stage in range(stages)]  # 0.7^2 * 100 is 48.999... in floats


def cuts_of(blocks: int, stages: int) -> list[int]:
    """Return the numbers of the blocks that stages begin with, but for the first."""
    return [blocks * stage // stages for stage in range(1, stages)]


def token_row(model: nn.Module, example_inputs: Inputs) -> Row:
    """Return the row of blocks whose tokens may leave.

    Raises:
        InputError: the model has none: its blocks need the grid that tokens stand in, or come in several rows.
    """
    rows = rows_of(model, example_inputs)
    row = rows[0]
    if len(rows) > 1 or row.inputs.ndim != 3:
        raise InputError(
            f"tokens cannot leave {type(model).__name__}: its blocks take a grid of tokens (windows, stages of "
            "several sizes); allowed: transformers that keep all tokens in one row, such as ViT and DeiT"
        )
    if not _any_order(model, row):
        raise InputError(
            f"tokens cannot leave {type(model).__name__}: its blocks tell tokens apart by their place in the row"
        )
    projected(row.blocks[0], row.inputs[:, :1], row.inputs)
    return row


def _any_order(model: nn.Module, row: Row) -> bool:
    """Return whether every block gives the same for each token whatever the order of the tokens."""
    order = torch.randperm(row.inputs.shape[1], generator=torch.Generator().manual_seed(0))
    with evaluating(model), torch.no_grad():
        return all(
            torch.allclose(block(row.inputs[:, order]), block(row.inputs)[:, order], rtol=1e-3, atol=1e-4)
            for block in row.blocks
        )


def front_of(model: nn.Module) -> tuple[int, bool]:
    """Return how many tokens at the front are no image tokens, and whether the first of them is the class token."""
    has_class = any(isinstance(getattr(model, name, None), Tensor) for name in ("cls_token", "class_token"))
    return int(getattr(model, "num_prefix_tokens", has_class)), has_class


@transforms.register("tokens")
class Tokens(Transform):
    """Let image tokens leave before some blocks of a vision transformer."""

    kind: Literal["tokens"] = "tokens"
    tokens: int = Field(ge=1, description="image tokens that come in")
    left: dict[int, int] = Field(description="block -> image tokens that it gets")
    mode: Mode = Field("drop", description="leave tokens out, or merge similar ones")

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the model with its row of blocks replaced, whose weights keep their names.

        Raises InputError where tokens cannot leave the model, or it has another number of them.
        """
        row = token_row(model, example_inputs)
        prefix, has_class = front_of(model)
        if row.inputs.shape[1] != self.tokens + prefix:
            raise InputError(f"the model has {row.inputs.shape[1] - prefix} image tokens, not {self.tokens}")
        parts = self.tokens + prefix, self.left, prefix, has_class, self.mode
        return replaced(model, row.name, TokenStages(list(row.blocks), *parts))
