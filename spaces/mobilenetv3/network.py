"""What this space's networks have different from other MobileNets."""

from __future__ import annotations

from spaces.mobilenet.network import MobileNet
from spaces.mobilenetv3.skeletons import Skeleton


def settle_head(network: MobileNet, skeleton: Skeleton) -> None:
    """Take the bias off the layer between pooling and classifier where the skeleton has none (Once-for-All's)."""
    if network.head is not None and not skeleton.head_bias:
        network.head.register_parameter("bias", None)
