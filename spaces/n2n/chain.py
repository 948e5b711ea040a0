"""A model as a chain of layers: what the policies of N2N read, one layer after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.modes import evaluating

UNKNOWN = 0
_KINDS: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.modules.conv._ConvNd,),
    (nn.MaxPool2d, nn.AdaptiveMaxPool2d),
    (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish),
    (nn.modules.batchnorm._BatchNorm,),
    (nn.Linear,),
    (nn.Dropout, nn.Dropout2d),
    (nn.LogSoftmax,),
    (nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    (nn.GroupNorm, nn.LayerNorm),
    (nn.Softmax,),
)
"""The kinds of layers from number 1 on, in the order of the published code; its L2Norm is any other norm here."""
_SLIDING = (1, 2, 8)  # convolutions and pools


@dataclass(frozen=True)
class Link:
    """One layer of the chain.

    `skip_start` and `skip_end` are j and n - j - 1 for the layer number j of the n inside a residual block, else 0.
    `passes`: it hands on a map of the same shape. `norm` is the batch norm that reads its outputs and nothing else.
    """

    name: str
    kind: int
    kernel: int = 0
    stride: int = 0
    out_channels: int = 0
    padding: int = 0
    skip_start: int = 0
    skip_end: int = 0
    passes: bool = False
    norm: str | None = None

    @property
    def state(self) -> tuple[float, ...]:
        """The published state (type, kernel, stride, channels, padding, skip start, skip end), each about 0 to 1.

        The published code hands its LSTMs the numbers as they are. The scales are constants, so that a policy reads
        layers of any teacher alike.
        """
        channels = torch.tensor(1.0 + self.out_channels).log2().item() / 12
        skips = (min(self.skip_start, 8) / 8, min(self.skip_end, 8) / 8)
        return (self.kind / len(_KINDS), self.kernel / 7, self.stride / 2, channels, self.padding / 3, *skips)


def make_chain(module: nn.Module, images: Tensor, blocks: Sequence[str]) -> tuple[Link, ...]:
    """Return the layers that run once on `images`, in the order in which they run; `blocks` are residual blocks."""
    found: dict[str, Link] = {}
    twice: set[str] = set()
    outputs: list[tuple[str, Tensor]] = []
    names = {part: name for name, part in module.named_modules() if name and not any(True for _ in part.children())}

    def note(part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        name = names[part]
        if name in found:
            twice.add(name)
        if not given or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
            return
        found.setdefault(name, _link(name, part, given[0], output))
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            source = next((other for other, tensor in reversed(outputs) if tensor is given[0]), None)
            if source is not None and found[source].norm is None:
                found[source] = replace(found[source], norm=name)
        outputs.append((name, output))

    handles = [part.register_forward_hook(note) for part in names]
    try:
        with evaluating(module), torch.no_grad():
            module(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return _placed([link for link in found.values() if link.name not in twice], blocks)


def _link(name: str, part: nn.Module, given: Tensor, output: Tensor) -> Link:
    kind = next((number for number, kinds in enumerate(_KINDS, 1) if isinstance(part, kinds)), UNKNOWN)
    slides = kind in _SLIDING
    sizes = [_first(getattr(part, each, 0)) if slides else 0 for each in ("kernel_size", "stride", "padding")]
    channels = int(output.shape[1]) if output.dim() > 1 else 0
    return Link(name, kind, sizes[0], sizes[1], channels, sizes[2], passes=given.shape == output.shape)


def _first(value: Any) -> int:
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0


def _placed(links: Sequence[Link], blocks: Sequence[str]) -> tuple[Link, ...]:
    """Return the links with their places inside residual blocks."""
    owners = [next((block for block in blocks if link.name.startswith(f"{block}.")), None) for link in links]
    placed = []
    for index, (link, owner) in enumerate(zip(links, owners, strict=True)):
        before = owners[:index].count(owner)
        after = owners[index + 1 :].count(owner)
        placed.append(link if owner is None else replace(link, skip_start=before, skip_end=after))
    return tuple(placed)
