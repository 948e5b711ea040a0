"""The widths and depths of a CIFAR ResNet."""

from spaces.resnet_shapes.space import ResNetShapesSpace

__all__ = ["ResNetShapesSpace"]
