"""Least squares for a change of weights: what makes up for a residual, kept small.

For what a layer reads, X (rows, d), with a one in the last column where it has a bias, and the residual R (rows, o)
between what it should give and what it gives, over n rows:

    G = X^T X / n    C = R^T X / n    D = diag(lam mean diag G_xx, ..., 1e-6)    change = C (G + D)^-1

This is W' - W of `W' = (Y X^T / n + W D)(G + D)^-1`: a ridge towards the weights as they are, the bias almost free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-2
BIAS_RIDGE = 1e-6


@dataclass
class Normal:
    """The sums of the normal equations of one layer, in float64: `gram` (groups, d, d), `cross` (groups, o, d).

    `energy` is the sum of squares of the residual, `rows` the number of rows so far. `bias`: the last of d is a one.
    """

    bias: bool
    gram: Tensor | None = None
    cross: Tensor | None = None
    energy: float = 0.0
    rows: int = 0

    def add(self, read: Tensor, residual: Tensor) -> None:
        """Add what was read, (rows, groups, d), and what is missing at the same rows, (rows, outputs)."""
        x = read.double()
        if self.bias:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
        x = x.transpose(0, 1)  # (groups, rows, d)
        r = residual.double()
        parts = r.reshape(len(r), x.shape[0], -1).permute(1, 2, 0)  # (groups, outputs, rows)
        gram, cross = x.transpose(1, 2) @ x, parts @ x
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.energy += float(r.square().sum())
        self.rows += len(r)

    def solved(self, lam: float = RIDGE) -> Solution:
        """Return the change of the weights, and the mean square of the residual before and after it."""
        assert self.gram is not None and self.cross is not None
        n = max(1, self.rows)
        return solve(self.gram / n, self.cross / n, self.energy / n, bias=self.bias, lam=lam)


@dataclass(frozen=True)
class Solution:
    """A change of weights (groups, outputs of a group, d), and the error (summed over outputs) before and after it."""

    change: Tensor
    before: float
    after: float


def solve(gram: Tensor, cross: Tensor, energy: float, *, bias: bool, lam: float = RIDGE) -> Solution:
    """Return the change that makes up for a residual, of means `gram` (groups, d, d), `cross` (groups, o, d), `energy`.

    Where that is no better (in numbers that are rounded), the change is zero.
    """
    free = gram.shape[-1] - bias
    diagonal = gram.diagonal(dim1=1, dim2=2)
    ridge = torch.full_like(diagonal, BIAS_RIDGE)
    ridge[:, :free] = lam * diagonal[:, :free].mean(1, keepdim=True).clamp(min=1e-30)
    system = gram + torch.diag_embed(ridge)
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed.any()):
        return Solution(torch.zeros_like(cross), energy, energy)
    change = torch.cholesky_solve(cross.transpose(1, 2), factor).transpose(1, 2)
    after = energy - 2 * float((change * cross).sum()) + float(((change @ gram) * change).sum())
    if not after <= energy:
        return Solution(torch.zeros_like(cross), energy, energy)
    return Solution(change, energy, max(after, 0.0))
