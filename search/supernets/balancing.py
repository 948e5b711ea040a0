"""Proportional fitting: which model trains which architecture, with every model equally busy (Sinkhorn's iteration)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest divergence (Kullback-Leibler, nats) of the models' shares from uniform; by Pinsker, none is off by 0.0071."""


def assigned(logits: Tensor, shift: Tensor) -> Tensor:
    """Return the probability of each model, (..., M), for rows of logits (..., M) less the models' `shift` (M,)."""
    return torch.softmax(logits - shift, dim=-1)


def balanced(logits: Tensor, tolerance: float = TOLERANCE) -> tuple[Tensor, int]:
    """Return what has to be taken off each model's logits so that all models are equally busy.

    Published (Javan et al.) as: divide each column of the probabilities by its mean, normalise the rows, until the
    column means are within `tolerance` of uniform; then divide later rows by the same means in the same order. All
    these divisions of a row together are one: by the product of the means, of which this returns the logarithm.
    In logarithms nothing becomes zero at any temperature, so the iteration ends.

    Args:
        logits: temperature times score, (architectures, M), float64.
        tolerance: largest Kullback-Leibler divergence of the column means from 1/M.

    Returns:
        The shift (M,), and how many divisions it stands for: 0 where the models are equally busy already.
    """
    architectures, models = logits.shape
    shift = torch.zeros(models, dtype=logits.dtype)
    divisions = 0
    while True:
        share = torch.logsumexp(torch.log_softmax(logits - shift, dim=1), dim=0) - math.log(architectures)
        if (share.exp() * (share + math.log(models))).sum() <= tolerance:
            return shift, divisions
        shift += share
        divisions += 1
