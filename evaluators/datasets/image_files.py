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
from evaluators.datasets.samples import ImageOnly, Joint, SampleLoader, Samples

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
        None, description="share of the resized image that evaluation crops; null: the model's, else 0.875"
    )
    workers: int = Field(2, ge=0, description="processes that read images, at most one a core; 0 reads in this one")

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
        sides = sides_for(self.image_size or image_size, hint)
        crop_pct = self.crop_pct or float(hint.get("crop_pct") or 0.875)
        preprocessing = choose(self, hint, sides, 3, measured=None, crop_pct=crop_pct)
        evaluation, training = (ImageOnly(self._transform(preprocessing, training)) for training in (False, True))
        train, test = sample_loaders(self, (found.train, found.test), evaluation, training, self.workers, seed)
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


def sides_for(side: int | None, hint: Mapping[str, Any]) -> tuple[int, ...]:
    """Return height and width: those asked for, else the model's (`hint`), else 224."""
    if side:
        return (side, side)
    return tuple(hint["input_size"][1:]) if hint.get("input_size") else (224, 224)


def sample_loaders(
    config: Images,
    splits: tuple[Samples | None, Samples | None],
    evaluation: Joint,
    training: Joint,
    workers: int,
    seed: int,
) -> tuple[SampleLoader | None, SampleLoader | None]:
    """Return loaders of the training and the test split, in batches and up to limits as `config` has them."""
    train, test = splits

    def loader(samples: Samples, limit: int | None, batch_size: int, drawn: Joint | None) -> SampleLoader:
        return SampleLoader(
            limited(samples, limit),
            evaluation=evaluation,
            training=drawn,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )

    return (
        None if train is None else loader(train, config.limit_train, config.batch_size, training),
        None if test is None else loader(test, config.limit_test, config.eval_batch_size, None),
    )


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
