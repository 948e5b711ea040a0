"""An inverted residual whose kernel, expansion and widths are taken out of one set of weights at every call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.mobilenet.blocks import Bottleneck
from spaces.mobilenet.sliced import conv, crop, norm, squeeze_excite
from spaces.mobilenet.tables import BlockRow


class ElasticBottleneck(Bottleneck):
    """The largest variant of a block, able to compute every smaller one with its first channels.

    A smaller kernel is the centre of the next larger one, as it is after its own matrix was applied, times a learned
    matrix that all channels of the layer share and that starts as the identity (Cai et al. 2020, section 3.3).

    Args:
        in_channels: most input channels.
        row: the largest variant.
        kernels: kernel sides to choose from, smallest first; those not below the row's are its own.
    """

    def __init__(self, in_channels: int, row: BlockRow, kernels: Sequence[int]) -> None:
        super().__init__(in_channels, row)
        self.row = row
        self.smaller = [kernel for kernel in reversed(kernels) if kernel < row.kernel]
        self.matrices = nn.ParameterDict({str(kernel): torch.eye(kernel**2) for kernel in self.smaller})

    def forward(self, x: Tensor, row: BlockRow | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, row.out, H / stride, W / stride) with the variant `row`; None for the largest."""
        row = row or self.row
        out, channels = x, x.shape[1]
        if row.hidden != channels and self.expand is not None and self.expand_norm is not None:
            out = self.activation(norm(self.expand_norm, conv(self.expand, out, row.hidden)))
        weight = self.kernel(row.hidden, row.kernel)
        padding = row.dilation * (row.kernel // 2)
        out = F.conv2d(out, weight, None, row.stride, padding, row.dilation, row.hidden)
        out = self.activation(norm(self.depthwise_norm, out))
        if row.se and self.squeeze is not None:
            out = squeeze_excite(self.squeeze, out, row.se)
        out = norm(self.project_norm, conv(self.project, out, row.out))
        return out + x if row.stride == 1 and row.out == channels else out

    def kernel(self, channels: int, size: int) -> Tensor:
        """Return the depthwise kernels (channels, 1, size, size)."""
        weight = crop(self.depthwise.weight, (channels, 1, self.row.kernel, self.row.kernel))
        for smaller in self.smaller:
            if smaller >= size:
                centre = crop(weight, (channels, 1, smaller, smaller))
                weight = F.linear(centre.flatten(1), self.matrices[str(smaller)]).view(centre.shape)
        return weight

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Put the middle channels, and those inside the squeeze, in falling order of the weights that read them."""
        if self.squeeze is not None:
            order = _by_norm(self.squeeze.restore.weight)
            _reorder(order, self.squeeze.reduce.weight, self.squeeze.reduce.bias)
            _reorder(order, self.squeeze.restore.weight, dim=1)
        if self.expand is None or self.expand_norm is None:
            return  # the middle channels are the input's
        order = _by_norm(self.project.weight)
        _reorder(order, self.expand.weight, self.depthwise.weight)
        for each in (self.expand_norm, self.depthwise_norm):
            _reorder(order, each.weight, each.bias, each.running_mean, each.running_var)
        if self.squeeze is not None:
            _reorder(order, self.squeeze.reduce.weight, dim=1)
            _reorder(order, self.squeeze.restore.weight, self.squeeze.restore.bias)
        _reorder(order, self.project.weight, dim=1)


def _by_norm(weight: Tensor) -> Tensor:
    """Return the order of the input channels of `weight` (out, in, 1, 1) by falling L1 norm."""
    return weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)


def _reorder(order: Tensor, *tensors: Tensor | None, dim: int = 0) -> None:
    for tensor in tensors:
        if tensor is not None:
            tensor.copy_(tensor.index_select(dim, order))
