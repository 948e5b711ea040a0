"""scikit-learn's digits with made noise; the clean images are what is wanted."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compress.core.config import Numbers
from evaluators.datasets.dataset import DataFacts, Dataset, datasets
from evaluators.datasets.digits import digits
from evaluators.datasets.loaders import Data
from evaluators.datasets.preprocessing import Preprocessing
from evaluators.datasets.samples import SampleLoader, Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("digits_denoising")
class DigitsDenoisingConfig(Dataset):
    """Digits of scikit-learn under Gaussian noise, and the same without: pixels between 0 and 1, one channel.

    The noise of a test image is always the same; a training image has other noise in every epoch, and where it is asked
    for without augmentation (as to judge by) its own. Noisy pixels may lie outside of 0 and 1, as in the literature.
    """

    name: Literal["digits_denoising"]
    image_size: int = Field(32, ge=8, le=512, description="pixels a side that the 8x8 images are enlarged to")
    channels: Annotated[Literal[1], Numbers()] = Field(1, description="1: grey")
    noise: float = Field(0.2, gt=0, le=2, description="standard deviation, in parts of the distance of black and white")
    batch_size: int = Field(64, ge=1, description="images in a training batch")
    eval_batch_size: int = Field(128, ge=1, description="images in an evaluation batch")
    limit_train: int | None = Field(None, ge=1, description="use that many training images")
    limit_test: int | None = Field(None, ge=1, description="use that many test images")

    def kinds(self) -> tuple[str, ...]:
        """Return images."""
        return ("values",)

    def describe(self) -> DataFacts:
        """Return one channel of output, and the size of the images."""
        return DataFacts(1, self.image_size, 1)

    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> Data:
        """Return loaders of noisy images, with clean ones as targets."""
        sizes = Preprocessing((1, self.image_size, self.image_size), (0.0,), (1.0,))
        train, test = (
            SampleLoader(
                Samples(_Read(images[:limit], split), range(len(images[:limit])), name="digit {}".format),
                evaluation=Noisy(self.noise, self.image_size),
                training=Noisy(self.noise, self.image_size, drawn=True) if split == 0 else None,
                batch_size=batch_size,
                workers=0,
                seed=seed,
            )
            for split, (images, limit, batch_size) in enumerate(
                zip(
                    _images(), (self.limit_train, self.limit_test), (self.batch_size, self.eval_batch_size), strict=True
                )
            )
        )
        return Data(task.bind(1, sizes.input_size), sizes, train, test, [])


@functools.cache
def _images() -> tuple[Tensor, Tensor]:
    """Return training and test images, float32 (N, 1, 8, 8) in 0..1."""
    found = digits()
    train, test = (each.permute(0, 3, 1, 2).float() / 255 for each in (found.train_images, found.test_images))
    return train, test


@dataclass(frozen=True)
class _Read:
    """Reads an image, with a number that its noise is drawn by."""

    images: Tensor
    split: int

    def __call__(self, index: int) -> tuple[Tensor, int]:
        """Return the image float32 (1, 8, 8) and the number."""
        return self.images[index], 2 * index + self.split


@dataclass(frozen=True)
class Noisy:
    """Makes of an image in 0..1 and a number the noisy image and the clean one, each float32 (1, side, side).

    Attributes:
        noise: its standard deviation.
        side: pixels.
        drawn: whether the noise comes from torch's global generator; else the number stands for it.
    """

    noise: float
    side: int
    drawn: bool = False

    def resized(self, size: int) -> Noisy:
        """Return the same for `size` pixels a side."""
        return replace(self, side=size)

    def __call__(self, image: Any, target: Any) -> tuple[Tensor, Tensor]:
        """Return both images."""
        clean = F.interpolate(image[None], (self.side, self.side), mode="bilinear")[0]
        generator = None if self.drawn else torch.Generator().manual_seed(int(target))
        return clean + self.noise * torch.randn(clean.shape, generator=generator), clean
