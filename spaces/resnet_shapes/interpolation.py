"""Channel-wise interpolation: maps of fewer channels brought to as many as others have (TAS, section 3.1)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def widened(x: Tensor, channels: int) -> Tensor:
    """Return maps (N, C, H, W) with `channels` channels, C at least: channel t is the mean of the channels
    floor(t C / channels) to ceil((t + 1) C / channels) - 1, as adaptive average pooling along the channels has it.
    """
    if x.shape[1] == channels:
        return x
    means = _means(x.shape[1], channels, x.device, x.dtype)
    wide: Tensor = torch.matmul(means, x.flatten(2)).unflatten(2, x.shape[2:])
    return wide


@lru_cache(maxsize=1024)
def _means(narrow: int, wide: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (wide, narrow) of the means."""
    found = torch.zeros(wide, narrow, dtype=torch.float64)
    for channel in range(wide):
        start, end = channel * narrow // wide, -(-(channel + 1) * narrow // wide)
        found[channel, start:end] = 1 / (end - start)
    return found.to(device, dtype)
