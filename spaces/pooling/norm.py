"""The normalisation of the published supernets, which one set of weights can share between all resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.pooling.switches import put


class BatchStatistics2d(nn.Module):
    """Batch norm without affine parameters and running statistics: by the batch in eval mode too, then `after`."""

    def __init__(self, channels: int, eps: float, after: nn.Module) -> None:
        super().__init__()
        self.channels, self.eps, self.after = channels, eps, after

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        if torch.onnx.is_in_onnx_export():  # torch's older exporter cannot write this norm for batches of any size
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
            normed = (x - mean) * torch.rsqrt(var + self.eps)
        else:
            normed = F.batch_norm(x, None, None, training=True, eps=self.eps)
        out: Tensor = self.after(normed)
        return out

    def extra_repr(self) -> str:
        """Say what is normalised."""
        return f"{self.channels}, eps={self.eps}"


def use_batch_statistics(network: nn.Module) -> None:
    """Replace every batch norm of `network`; timm's keep the dropout and the activation that they hold."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            after = nn.Sequential(*module.children()) if any(True for _ in module.children()) else nn.Identity()
            put(network, name, BatchStatistics2d(module.num_features, module.eps, after))


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether there is a batch norm to replace."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
