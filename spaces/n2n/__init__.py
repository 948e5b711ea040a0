"""Layers and widths of a given model as decisions, as N2N removes and shrinks them."""

from spaces.n2n.space import N2NConfig, N2NSpace

__all__ = ["N2NConfig", "N2NSpace"]
