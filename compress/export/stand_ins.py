"""Models whose own outputs no file can be held against, as those of untrained ones, and what is compared instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.core.batch_norm import norm_layers, recalibrate
from compress.core.copies import copied
from compress.core.errors import InputError
from compress.core.tensors import Inputs, tensors_in
from compress.export.checks import AMPLIFIED, Check, like
from compress.export.equal_ranks import ranks_equals, with_noise

SEEN = 16
"""Images that batch norms are estimated on."""


def stand_in(
    own: nn.Module, module: nn.Module, example: Inputs, checks: Sequence[Check]
) -> tuple[str, nn.Module] | None:
    """Return a copy of `own` that a file of `own` can be judged by, and why it is needed; None where it is not.

    Args:
        own: in eval mode.
        module: the same as files have it.
        example: inputs of both.
        checks: what files of `module` were compared on.
    """
    if ranks_equals(module, example):
        why = (
            "the model ranks values that are exactly equal, as untrained ones do, so what it picks is chance; the "
            "file of the same model with noise on its weights was compared"
        )
        return why, with_noise(own)
    rounding = max(each.amplified() for each in checks)
    calm = _calmed(own, checks, example) if isinstance(example, Tensor) and rounding > AMPLIFIED else None
    if calm is None:
        return None
    why = (
        f"the model amplifies rounding, as untrained ones do: its own output is off by {rounding:.1e} of the largest "
        "between float32 and float64; the file of the same model with its batch norms estimated anew was compared"
    )
    return why, calm


def _calmed(own: nn.Module, checks: Sequence[Check], example: Tensor) -> nn.Module | None:
    """Return a copy whose activations its batch norms keep near 1; None where there are no such to do it."""
    if not norm_layers(own, frozen=True):
        return None
    several = max(each.batch for each in checks) > 1  # else the model takes one at a time
    seen = torch.cat([*tensors_in(like(example, SEEN, seed=9)), example])
    images = [seen] if several else [each.images for each in checks]
    calm = copied(own)
    try:
        with torch.no_grad():
            recalibrate(calm, images, len(images), frozen=True)
    except InputError:  # one value per channel
        return None
    return calm
