"""Blocks run at a fraction of their size: the first channels of every layer, the centre of every kernel.

This is how supernets share weights between widths and kernels. The slices are views: gradients and running statistics
end up in the whole block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from spaces.mobilenet.blocks import Bottleneck, ConvBlock, SqueezeExcite, shortcut
from spaces.mobilenet.tables import BlockRow


def crop(whole: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the view of `shape`: the first entries of dimensions 0 and 1, the centre of those after."""
    if whole.shape == tuple(shape):
        return whole
    starts = [
        (have - want) // 2 if at > 1 else 0 for at, (have, want) in enumerate(zip(whole.shape, shape, strict=True))
    ]
    return whole[tuple(slice(start, start + want) for start, want in zip(starts, shape, strict=True))]


class SlicedConv(nn.Conv2d):
    """A convolution that takes as many input channels as it is given, up to `in_channels`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, c, H, W) with c <= in_channels to (N, out_channels, H, W)."""
        return conv(self, input, self.out_channels)


def conv(whole: nn.Conv2d, x: Tensor, out: int, kernel: int | None = None, stride: int = 1) -> Tensor:
    """Convolve (N, c, H, W) with the first `out` filters of `whole`, their first c inputs and `kernel`'s centre."""
    depthwise = whole.groups > 1
    kernel = kernel or whole.kernel_size[0]
    weight = crop(whole.weight, (out, 1 if depthwise else x.shape[1], kernel, kernel))
    bias = None if whole.bias is None else crop(whole.bias, (out,))
    return F.conv2d(x, weight, bias, stride, kernel // 2, 1, out if depthwise else 1)


def norm(whole: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise (N, c, H, W) with the first c channels of `whole`, whose running statistics training updates."""
    channels = x.shape[1]
    if channels == whole.num_features:
        return cast(Tensor, whole(x))
    mean, var, tracked = whole.running_mean, whole.running_var, whole.num_batches_tracked
    assert mean is not None and var is not None and tracked is not None
    momentum = whole.momentum
    if whole.training:
        tracked.add_(1)
        momentum = 1 / int(tracked) if momentum is None else momentum
    weight, bias = whole.weight[:channels], whole.bias[:channels]
    momentum = momentum or 0.0
    return F.batch_norm(x, mean[:channels], var[:channels], weight, bias, whole.training, momentum, whole.eps)


def squeeze_excite(whole: SqueezeExcite, x: Tensor, squeezed: int) -> Tensor:
    """Gate (N, c, H, W) through the first `squeezed` channels of the bottleneck."""
    reduced = F.relu(conv(whole.reduce, x.mean((2, 3), keepdim=True), squeezed))
    return x * cast(Tensor, whole.gate(conv(whole.restore, reduced, x.shape[1])))


def bottleneck(whole: Bottleneck, x: Tensor, row: BlockRow) -> Tensor:
    """Compute what `Bottleneck(c, row)` would on (N, c, H, W), with the weights of a larger one."""
    out = x
    if whole.expand is not None and whole.expand_norm is not None:
        out = whole.activation(norm(whole.expand_norm, conv(whole.expand, out, row.hidden)))
    out = conv(whole.depthwise, out, row.hidden, row.kernel, row.stride)
    out = whole.activation(norm(whole.depthwise_norm, out))
    if row.se and whole.squeeze is not None:
        out = squeeze_excite(whole.squeeze, out, row.se)
    out = norm(whole.project_norm, conv(whole.project, out, row.out))
    return _add_shortcut(x, out, row)


def conv_block(whole: ConvBlock, x: Tensor, row: BlockRow) -> Tensor:
    """Compute what `ConvBlock(c, row)` would on (N, c, H, W), with the weights of a larger one."""
    out = whole.activation(norm(whole.norm, conv(whole.conv, x, row.out, row.kernel, row.stride)))
    if row.se and whole.squeeze is not None:
        out = squeeze_excite(whole.squeeze, out, row.se)
    return _add_shortcut(x, out, row)


def _add_shortcut(x: Tensor, out: Tensor, row: BlockRow) -> Tensor:
    module = shortcut(x.shape[1], row)
    return out if module is None else out + module(x)
