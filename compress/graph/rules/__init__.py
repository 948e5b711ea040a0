"""What each elementary operation does to the axes of its tensors (`compress.graph.tracer`), one file a family."""

from compress.graph.rules import convolutions, norms, picking, positions, products, reductions, shapes  # noqa: F401
from compress.graph.rules.means import follow_means, freeze_means
from compress.graph.rules.pointwise import POINTWISE
from compress.graph.rules.rule import RULES

__all__ = ["POINTWISE", "RULES", "follow_means", "freeze_means"]
