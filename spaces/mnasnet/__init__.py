"""MnasNet's factorised hierarchical space: one block type for each stage."""

from spaces.mnasnet.space import MnasNet, MnasNetConfig

__all__ = ["MnasNet", "MnasNetConfig"]
