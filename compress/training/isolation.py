"""A training leaves the process as it was: its random state, and how a GPU chooses its algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from compress.core.environment import convolutions


@contextmanager
def isolated(device: str | torch.device, deterministic: bool) -> Iterator[None]:
    """Leave the random state of this process, and how a GPU chooses its algorithms, as they were."""
    where = torch.device(device)
    gpus = [where.index or 0] if where.type == "cuda" else []
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus), convolutions(str(where), deterministic):
            yield
    finally:
        np.random.set_state(numpy_state)
