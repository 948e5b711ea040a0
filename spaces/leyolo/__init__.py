"""LeYOLO: small detectors of inverted bottlenecks, whose backbone and pyramid are searched together."""

from spaces.leyolo.space import LeYOLOSpace

__all__ = ["LeYOLOSpace"]
