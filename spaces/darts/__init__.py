"""The cells of DARTS."""

from spaces.darts.space import DARTSSpace

__all__ = ["DARTSSpace"]
