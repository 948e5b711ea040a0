"""Sets of image files: read, cropped and augmented one by one with timm's transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.arrays import balanced
from evaluators.datasets.dataset import DataFacts
from evaluators.datasets.decoding import ToChannels
from evaluators.datasets.images import Images, Unit
from evaluators.datasets.loaders import Data
from evaluators.datasets.preprocessing import Preprocessing, choose
from evaluators.datasets.samples import ImageOnly, SampleLoader, Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@dataclass(frozen=True)
class FileSet:
    """The splits that there are, and the class names in label order."""

    train: Samples | None
    test: Samples | None
    class_names: list[str]


class Files(Images):
    """Sets of image files; read, cropped and augmented one by one with timm's transforms."""

    augment: Literal["none", "timm"] = Field("timm", description="timm: random resized crop, flip and what follows")
    crop_scale: Annotated[float, Field(gt=0, le=1)] = Field(0.08, description="least area of the random crop")
    color_jitter: float = Field(0.4, ge=0, description="strength of colour jitter; not used with auto_augment")
    auto_augment: str | None = Field(None, description="timm's policy, such as rand-m9-mstd0.5-inc1")
    random_erase: Unit = Field(0.0, description="probability of random erasing")
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the resized image that evaluation crops; null: the model's"
    )
    workers: int = Field(2, ge=0, description="processes that read images; 0 reads in this one")

    @abstractmethod
    def open(self) -> FileSet:
        """List the images and labels of the set without reading any image; InputError where it is wrong."""

    def describe(self) -> DataFacts:
        """Return the number of classes; image size and channels are the recipe's."""
        return DataFacts(len(self.open().class_names), self.image_size, self.channels)

    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> Data:
        """Return loaders that read images one by one."""
        hint = dict(preprocessing_hint or {})
        found = self.open()
        side = self.image_size or image_size
        sides = (side, side) if side else tuple(hint["input_size"][1:]) if hint.get("input_size") else (224, 224)
        crop_pct = self.crop_pct or float(hint.get("crop_pct") or 0.875)
        preprocessing = choose(self, hint, sides, 3, measured=None, crop_pct=crop_pct)
        evaluation, training = (ImageOnly(self._transform(preprocessing, training)) for training in (False, True))
        train, test = (
            None
            if split is None
            else SampleLoader(
                limited(split, limit),
                evaluation=evaluation,
                training=transform,
                batch_size=batch_size,
                workers=self.workers,
                seed=seed,
            )
            for split, limit, batch_size, transform in (
                (found.train, self.limit_train, self.batch_size, training),
                (found.test, self.limit_test, self.eval_batch_size, None),
            )
        )
        bound = task.bind(len(found.class_names), preprocessing.input_size)
        return Data(bound, preprocessing, train, test, found.class_names)

    def _transform(self, preprocessing: Preprocessing, training: bool) -> Callable[[Any], Tensor]:
        """Return timm's transform from what `decode` returns to a normalised tensor (C, H, W)."""
        from timm.data.transforms_factory import create_transform
        from torchvision.transforms import Compose

        augmented = training and self.augment == "timm"
        _, height, width = preprocessing.input_size
        try:
            result = create_transform(
                (height, width),
                is_training=augmented,
                scale=(self.crop_scale, 1.0),
                color_jitter=self.color_jitter,
                auto_augment=self.auto_augment,
                re_prob=self.random_erase,
                interpolation=preprocessing.interpolation,
                mean=preprocessing.mean,
                std=preprocessing.std,
                crop_pct=preprocessing.crop_pct,
            )
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise InputError(f"data.auto_augment: timm has no policy {self.auto_augment!r} ({error})") from error
        bytes_only = "data.auto_augment" if augmented and self.auto_augment else None
        composed: Callable[[Any], Tensor] = Compose([ToChannels(preprocessing.input_size[0], bytes_only), result])
        return composed


def limited(files: Samples, limit: int | None) -> Samples:
    """Return `limit` of the images, as many of each class as can be; of images without a class, evenly spread ones."""
    count = len(files.indices)
    if limit is None or limit >= count:
        return files
    if files.labels is None:
        places = np.linspace(0, count, limit, endpoint=False).astype(int)
    else:
        places = balanced(np.asarray(files.labels)[files.indices], limit).numpy()
    return replace(files, indices=[files.indices[place] for place in places])
