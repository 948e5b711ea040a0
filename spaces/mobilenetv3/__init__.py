"""The elastic MobileNetV3 space and its weight-sharing supernet."""

from spaces.mobilenetv3.space import MobileNetV3Space

__all__ = ["MobileNetV3Space"]
