"""Batch norms that do something."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Draw weights and statistics of all batch norms: fresh ones are the identity, which would hide mix-ups."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.bias, module.running_mean):
                if tensor is not None:
                    tensor.normal_(std=0.2)
            if module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 2.0)
