"""Plain multilayer perceptrons on images: they know nothing of space, and train badly where they are deep."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from spaces.shapes import pair


class Mlp(nn.Module):
    """Linear layers, each with batch norm, ReLU and dropout, and a classifier, on flat images.

    Attributes:
        num_classes: width of the classifier.
        input_size: channels, height and width of the images.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 32,
        widths: Sequence[int] = (512, 512, 512),
        dropout: float = 0.0,
    ) -> None:
        """Build it.

        Args:
            num_classes: width of the classifier.
            in_chans: channels of the images.
            img_size: pixels a side, or height and width.
            widths: of the layers before the classifier, in their order.
            dropout: share of each of these that is left out in training.

        Raises:
            ValueError: the widths are none.
        """
        super().__init__()
        if not isinstance(widths, list | tuple) or not all(type(width) is int and width > 0 for width in widths):
            raise ValueError(f"widths are whole numbers above 0, one for each layer; got {widths}")
        self.num_classes, self.input_size = num_classes, (in_chans, *pair(img_size))
        wide = [prod(self.input_size), *widths]
        self.layers = nn.Sequential(*(_layer(before, after, dropout) for before, after in pairwise(wide)))
        self.head = nn.Linear(wide[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, channels, height, width) to logits (N, num_classes)."""
        logits: Tensor = self.head(self.layers(images.flatten(1)))
        return logits


def _layer(before: int, after: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True), nn.Dropout(dropout))
