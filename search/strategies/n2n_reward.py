"""What a student of N2N is worth.

Ashok et al., "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning" (ICLR 2018),
section 3.4, with the numbers of the published code.
"""

from __future__ import annotations

from dataclasses import dataclass

INVALID = -1.0
"""Reward of what cannot be built, or is not smaller than what it was made from."""
PATIENCE = 15
"""Epochs after which a student that breaks a constraint is worth -1, however good it is."""


def reward(params: int, value: float, base_params: int, base_value: float) -> float:
    """Return R = R_c · R_a, with R_c = C (2 - C) for the compression C = 1 - params / base, and R_a = value / base.

    R_c is concave: 0.75 at half the size, 0.96 at a fifth, 0.99 at a tenth, so accuracy decides among small students.
    """
    compression = 1 - params / base_params
    return compression * (2 - compression) * value / base_value


def tolerance(epoch: int) -> float:
    """Return ε = max(0, 1 - epoch / 15)⁴: 1 in epoch 0, 0.1975 in epoch 5, 0 from epoch 15 on."""
    return float(max(0.0, 1 - epoch / PATIENCE) ** 4)


def penalised(plain: float, epoch: int) -> float:
    """Return R' = (ε - 1) + ε R, what a student that breaks a constraint is worth: less from epoch to epoch."""
    share = tolerance(epoch)
    return (share - 1) + share * plain


@dataclass(frozen=True)
class Limits:
    """What a student should keep to: at most so many parameters, at least so much of the objective's metric."""

    max_params: int | None = None
    min_accuracy: float | None = None

    def too_large(self, params: int) -> bool:
        """Return whether a student has too many parameters."""
        return self.max_params is not None and params > self.max_params

    def broken(self, params: int, value: float) -> bool:
        """Return whether a student breaks any of them."""
        return self.too_large(params) or (self.min_accuracy is not None and value < self.min_accuracy)
