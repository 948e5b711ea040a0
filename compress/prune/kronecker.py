"""The values that a hypercomplex layer starts from: the nearest ones to a given weight, or new ones.

The weight W (O, I, ...kernel) and the sum of n products A_i ⊗ F_i of `compress.transforms.hypercomplex`.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

Factors = tuple[Tensor, Tensor]
"""A (n, n, n) and F (n, O/n, I/n, ...kernel)."""


def rearranged(weight: Tensor, n: int) -> Tensor:
    """Return the matrix (n², O · I · kernel / n²) of a weight; of A ⊗ F it is the outer product of A's entries and F's.

    Van Loan and Pitsianis, "Approximation with Kronecker products", 1993, section 2.
    """
    out, into, *kernel = weight.shape
    blocks = weight.reshape(n, out // n, n, into // n, *kernel).transpose(1, 2)
    return blocks.reshape(n * n, -1)


def nearest_sum(weight: Tensor, n: int) -> tuple[Factors, float]:
    """Return the n products whose sum is nearest to `weight`, and the share of its squares that the sum leaves out.

    The rank-n truncation of the rearranged matrix's singular values is the best there is; the share is
    1 - sum of the n largest s² / sum of all s². A is scaled as in `fresh_sum`; float64 inside.
    """
    out, into, *kernel = weight.shape
    matrix = rearranged(weight.detach().double(), n)
    vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :n]  # those of the n largest s
    products = vectors.T @ matrix  # (n, ...): s times the right singular vectors
    squares = products.square().sum(1)
    scale = torch.where(squares > 0, squares, torch.ones_like(squares)).pow(0.25)
    mixing = (vectors * scale).T.reshape(n, n, n)
    blocks = (products / scale[:, None]).reshape(n, out // n, into // n, *kernel)
    factor = math.sqrt(n**3) / mixing.norm()
    total = float(matrix.square().sum())
    left_out = max(1 - float(squares.sum()) / total, 0.0) if total > 0 else 0.0
    return ((mixing * factor).to(weight.dtype), (blocks / factor).to(weight.dtype)), left_out


def fresh_sum(weight: Tensor, n: int, generator: Generator) -> Factors:
    """Return new factors for a weight of the shape of `weight`, whose entries then have variance 2 / (I · kernel).

    var(W) = n · var(A) · var(F) holds on average over A, which has n³ entries only: A is scaled to a mean square of
    exactly 1, and var(F) = 2 / (fan-in · n).
    """
    out, into, *kernel = weight.shape
    mixing = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    mixing *= math.sqrt(n**3) / mixing.norm()
    deviation = math.sqrt(2 / (into * math.prod(kernel) * n))
    blocks = deviation * torch.randn(n, out // n, into // n, *kernel, generator=generator, dtype=torch.float64)
    return mixing.to(weight), blocks.to(weight)
