"""LR-ASPP: segmentation networks on a MobileNet, searched together with it."""

from spaces.lraspp.space import LRASPPSpace

__all__ = ["LRASPPSpace"]
