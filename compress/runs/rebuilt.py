"""Whether what a stage leaves on disk is the model that it had."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.bundle import Bundle
from compress.core.errors import CompressError, InputError
from compress.core.modes import draws_at_random, evaluating
from compress.core.tensors import call, flat


def check_rebuilt(bundle: Bundle, folder: Path, stage: str) -> None:
    """Open the bundle that was written to `folder`, and compare its outputs for one input with those of `bundle`.

    A stage that exchanges modules and says so by no transform leaves a bundle that cannot be opened, or, worse, one of
    another function: weights alone tell no activation.

    Raises:
        CompressError: the written bundle is not the same model.
    """
    advice = "a stage that changes more than weights has to describe it as a transform (compress.transforms)"
    try:
        again = Bundle.load(folder)
    except InputError as error:
        raise CompressError(f"{stage}: what it left cannot be opened again: {error}; {advice}") from error
    inputs = bundle.example_inputs()
    if draws_at_random(bundle.model, inputs):
        return  # nothing to compare
    with torch.no_grad(), evaluating(bundle.model), evaluating(again.model):
        one, other = (flat(call(model, inputs)) for model in (bundle.model, again.model))
    scale = float(one.abs().max()) if one.numel() else 0.0
    if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale, equal_nan=True):
        raise CompressError(f"{stage}: what it left gives other outputs once it is opened again; {advice}")
