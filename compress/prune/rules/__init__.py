"""What each elementary operation does to the axes of its tensors (`compress.prune.trace`), one file a family."""

from compress.prune.rules import convolutions, norms, picking, positions, products, reductions, shapes  # noqa: F401
from compress.prune.rules.base import RULES
from compress.prune.rules.means import follow_means, freeze_means
from compress.prune.rules.pointwise import POINTWISE

__all__ = ["POINTWISE", "RULES", "follow_means", "freeze_means"]
