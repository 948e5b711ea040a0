"""Low-rank factorisation: a linear layer or convolution becomes two, with fewer channels between them.

A weight W (O, I, ...kernel), read as a matrix (O, I · kernel), of rank r is a product: the first layer has the kernel
and r outputs, the second is a convolution 1 × 1 (or a linear layer) from them to O. Both together have
r · (I · kernel + O) weights, and take as many MACs at every place of the output.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from compress.core.errors import InputError
from compress.core.tensors import Inputs
from compress.transforms import Transform, transforms
from compress.transforms.layers import Plain, kind_of, plain_layer, with_layers


def unfit(layer: Plain) -> str | None:
    """Return why a layer cannot be made two, or None where it can."""
    if isinstance(layer, nn.Linear) or layer.groups == 1:
        return None
    return "a depthwise convolution is of rank one already" if layer.weight.shape[1] == 1 else "it has groups"


class Pair(nn.Sequential):
    """Two layers, `reduce` and `expand`, that stand for one."""

    @property
    def weight(self) -> Tensor:
        """The weight (O, I, ...kernel) of the one layer, for modules that look at it."""
        reduce, expand = (self.get_parameter(f"{name}.weight") for name in ("reduce", "expand"))
        return (expand.flatten(1) @ reduce.flatten(1)).view(len(expand), *reduce.shape[1:])


def pair(layer: Plain, rank: int) -> Pair:
    """Return the two layers for one; their values are not set."""
    out, into, *kernel = layer.weight.shape
    about: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    kind, first, second = kind_of(layer), {}, {}
    if not isinstance(layer, nn.Linear):
        kept = ("stride", "padding", "dilation", "padding_mode")
        first = {"kernel_size": tuple(kernel)} | {name: getattr(layer, name) for name in kept}
        second = {"kernel_size": (1,) * len(kernel)}
    reduce = skip_init(kind, into, rank, bias=False, **first, **about)
    expand = skip_init(kind, rank, out, bias=layer.bias is not None, **second, **about)
    return Pair(OrderedDict(reduce=reduce, expand=expand)).train(layer.training)


@transforms.register("low_rank")
class LowRank(Transform):
    """Linear layers and convolutions become two, with few channels between them."""

    kind: Literal["low_rank"] = "low_rank"
    ranks: Mapping[str, Annotated[int, Field(ge=1)]] = Field(description="layer -> channels between its two")

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the model with pairs of layers; raises InputError where one cannot be."""
        new = {}
        for name, rank in self.ranks.items():
            layer = plain_layer(model, name)
            reason = unfit(layer)
            if reason is not None:
                raise InputError(f"the layer {name!r} cannot be factorised: {reason}")
            new[name] = pair(layer, rank)
        return with_layers(model, new)
