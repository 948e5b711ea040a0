"""DnCNN: convolutions in a row that find the noise in an image, which is then taken away."""

from __future__ import annotations

from torch import Tensor, nn


class DnCNN(nn.Module):
    """Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", 2017.

    3x3 convolutions with batch norm and ReLU, the first without a norm; the last gives the noise. Images of any size.

    Attributes:
        in_chans: channels of the images.
    """

    def __init__(self, in_chans: int = 1, depth: int = 17, width: int = 64) -> None:
        """Build it.

        Args:
            in_chans: channels of the images.
            depth: convolutions.
            width: channels between them.

        Raises:
            ValueError: there are fewer than two convolutions.
        """
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth counts the first and the last convolution; got {depth}; allowed 2 and more")
        self.in_chans = in_chans
        first = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(first, *(_layer(width) for _ in range(depth - 2)))
        self.noise = nn.Conv2d(width, in_chans, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map noisy images (N, in_chans, H, W) to clean ones of the same shape."""
        clean: Tensor = images - self.noise(self.layers(images))
        return clean


def _layer(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
