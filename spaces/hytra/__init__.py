"""HyTra, the fabric of convolutions and attention that BossNAS searches (Li et al., ICCV 2021)."""

from spaces.hytra.fabric import Fabric
from spaces.hytra.space import HyTra

__all__ = ["Fabric", "HyTra"]
