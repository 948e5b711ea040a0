"""Parameterized hypercomplex layers: weights that are sums of n Kronecker products.

Grassucci, Zhang and Comminiello, "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions",
TNNLS 2022:  W = sum_i A_i ⊗ F_i  with A (n, n, n) and F (n, O/n, I/n, ...kernel), about 1/n of the parameters of W,
which is multiplied out whenever the layer runs: MACs, time and memory are the ordinary layer's, and a file for
deployment holds that one.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from compress.core.errors import InputError
from compress.core.tensors import Inputs
from compress.transforms import Transform, transforms
from compress.transforms.layers import Foldable, Plain, kind_of, plain_layer, with_layers

_CONVOLVE: dict[type[nn.Module], Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def kronecker_sum(mixing: Tensor, blocks: Tensor) -> Tensor:
    """Return W (O, I, ...kernel) with W[a·O/n + c, b·I/n + d] = sum_i A[i, a, b] · F[i, c, d].

    Args:
        mixing: A (n, n, n).
        blocks: F (n, O/n, I/n, ...kernel).
    """
    kernel = (1,) * (blocks.dim() - 3)
    weight = torch.kron(mixing[0].reshape(*mixing.shape[1:], *kernel), blocks[0])
    for a, f in zip(mixing[1:], blocks[1:], strict=True):
        weight = weight + torch.kron(a.reshape(*a.shape, *kernel), f)
    return weight


class HypercomplexLayer(Foldable):
    """What both hypercomplex layers are: the parameters `mixing` (A), `blocks` (F) and `bias` (O,) or None."""

    def __init__(self, like: Plain, n: int) -> None:
        """Make a layer of the sizes and settings of `like`, whose channels n divides; its values are not set."""
        super().__init__()
        out, into, *kernel = like.weight.shape
        about: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
        self.mixing = nn.Parameter(torch.zeros(n, n, n, **about))
        self.blocks = nn.Parameter(torch.zeros(n, out // n, into // n, *kernel, **about))
        self.bias = None if like.bias is None else nn.Parameter(torch.zeros(out, **about))
        self.train(like.training)

    @property
    def weight(self) -> Tensor:
        """The weight (O, I, ...kernel), multiplied out."""
        return kronecker_sum(self.mixing, self.blocks)

    def extra_repr(self) -> str:
        """Return the number of products and the shape of what they add up to."""
        return f"n={len(self.mixing)}, weight {tuple(self.weight.shape)}"

    def _filled(self, kind: type[nn.Module], **settings: Any) -> nn.Module:
        """Return an ordinary layer of `kind` with the values of this one."""
        weight = self.weight.detach()
        about = {"device": weight.device, "dtype": weight.dtype, "bias": self.bias is not None}
        layer: nn.Module = skip_init(kind, weight.shape[1], weight.shape[0], **settings, **about)
        values = {"weight": weight} | ({} if self.bias is None else {"bias": self.bias.detach()})
        layer.load_state_dict(values)
        return layer.train(self.training)


class HypercomplexLinear(HypercomplexLayer):
    """A linear layer whose weight is a sum of n Kronecker products."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + bias, (..., O)."""
        return F.linear(x, self.weight, self.bias)

    def folded(self) -> nn.Module:
        """Return the ordinary linear layer."""
        return self._filled(nn.Linear)


class HypercomplexConv(HypercomplexLayer):
    """A convolution (of one to three dimensions, without groups) whose weight is a sum of n Kronecker products."""

    def __init__(self, like: Plain, n: int) -> None:
        """Make a layer of the sizes and settings of `like`."""
        super().__init__(like, n)
        self.ordinary = kind_of(like)
        self.settings = {name: getattr(like, name) for name in ("stride", "padding", "dilation")}

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (N, I, ...) with W."""
        convolved: Tensor = _CONVOLVE[self.ordinary](x, self.weight, self.bias, **self.settings)
        return convolved

    def folded(self) -> nn.Module:
        """Return the ordinary convolution."""
        return self._filled(self.ordinary, kernel_size=tuple(self.blocks.shape[3:]), **self.settings)


def unfit(layer: Plain, n: int) -> str | None:
    """Return why the weight of `layer` cannot be a sum of n Kronecker products, or None where it can."""
    out, into = layer.weight.shape[:2]
    if not isinstance(layer, nn.Linear):
        if layer.groups > 1:
            return "a depthwise or grouped convolution is none already" if into == 1 else "it has groups"
        if layer.padding_mode != "zeros":
            return f"it pads with {layer.padding_mode}"
    wrong = [f"{width} {what}" for width, what in ((into, "inputs"), (out, "outputs")) if width % n]
    return f"{n} does not divide its {' and '.join(wrong)}" if wrong else None


@transforms.register("hypercomplex")
class Hypercomplex(Transform):
    """Weights of linear layers and convolutions become sums of n Kronecker products."""

    kind: Literal["hypercomplex"] = "hypercomplex"
    n: int = Field(ge=2, description="products in each sum")
    layers: tuple[str, ...] = Field(description="which layers")

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the model with hypercomplex layers; raises InputError where one cannot be."""
        new: dict[str, nn.Module] = {}
        for name in self.layers:
            layer = plain_layer(model, name)
            reason = unfit(layer, self.n)
            if reason is not None:
                raise InputError(f"the layer {name!r} cannot be hypercomplex: {reason}")
            linear = isinstance(layer, nn.Linear)
            new[name] = HypercomplexLinear(layer, self.n) if linear else HypercomplexConv(layer, self.n)
        return with_layers(model, new)
