"""Data sets: what the recipe may name, and the batches that come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluators.datasets import arrays, files
from evaluators.datasets.batch import Batch
from evaluators.datasets.config import (
    DataConfig,
    DigitsConfig,
    HuggingFaceConfig,
    ImageFolderConfig,
    NoneConfig,
    NpzConfig,
    TorchvisionConfig,
)
from evaluators.datasets.loaders import ArrayLoader, Data, FileLoader, Loader
from evaluators.datasets.preprocessing import Preprocessing, choose

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig

__all__ = [
    "Batch",
    "Data",
    "DataConfig",
    "DataFacts",
    "DigitsConfig",
    "HuggingFaceConfig",
    "ImageFolderConfig",
    "Loader",
    "NoneConfig",
    "NpzConfig",
    "Preprocessing",
    "TorchvisionConfig",
    "describe",
    "load_data",
]


@dataclass(frozen=True)
class DataFacts:
    """What a model has to fit; None where the data leaves it to the model."""

    num_classes: int | None
    image_size: int | None
    channels: int | None


def describe(config: DataConfig) -> DataFacts:
    """Return the classes, the image size (pixels) and the channels of the data, before any model exists.

    The image size is the recipe's, else the stored images'; folders of images of all sizes have none of their own.
    Raises InputError for data that is absent or wrong.
    """
    if isinstance(config, NoneConfig):
        return DataFacts(None, config.image_size, None)
    if isinstance(config, ImageFolderConfig | HuggingFaceConfig):
        return DataFacts(len(files.open_set(config).class_names), config.image_size, config.channels)
    found = arrays.open_set(config)
    return DataFacts(
        found.num_classes, config.image_size or found.image_size, config.channels or int(found.test_images.shape[-1])
    )


def load_data(
    config: DataConfig,
    task: TaskConfig,
    preprocessing_hint: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Data | None:
    """Open the data of a recipe for `task`, with the preprocessing of a model; None for `name: none`.

    `preprocessing_hint` is the model's `pretrained_cfg` (see `spaces.zoo.BuiltModel`). The image size is the recipe's,
    else `image_size`, else the model's where it works at no other or the images have none of their own, else the
    images'. Raises InputError for data that is absent or wrong.
    """
    hint = dict(preprocessing_hint or {})
    if isinstance(config, NoneConfig):
        return None
    if isinstance(config, ImageFolderConfig | HuggingFaceConfig):
        return _from_files(config, task, hint, image_size, seed)
    found = arrays.open_set(config)
    own = tuple(hint["input_size"][1:]) if _fixed(hint) else None
    sides = arrays.sides(config, found, own if image_size is None else (image_size, image_size))
    native = int(found.test_images.shape[-1])
    preprocessing = choose(config, hint, sides, native, measured=found.statistics, crop_pct=1.0)
    train, test = (
        ArrayLoader(
            *arrays.limited(images, labels, limit),
            preprocessing=preprocessing,
            batch_size=batch_size,
            augment=augment,
            seed=seed,
        )
        for images, labels, limit, batch_size, augment in (
            (found.train_images, found.train_labels, config.limit_train, config.batch_size, config.augment),
            (found.test_images, found.test_labels, config.limit_test, config.eval_batch_size, None),
        )
    )
    return Data(task.bind(found.num_classes, preprocessing.input_size), preprocessing, train, test, found.class_names)


def _from_files(
    config: ImageFolderConfig | HuggingFaceConfig,
    task: TaskConfig,
    hint: Mapping[str, Any],
    image_size: int | None,
    seed: int,
) -> Data:
    found = files.open_set(config)
    side = config.image_size or image_size
    sides = (side, side) if side else tuple(hint["input_size"][1:]) if hint.get("input_size") else (224, 224)
    crop_pct = config.crop_pct or float(hint.get("crop_pct") or 0.875)
    preprocessing = choose(config, hint, sides, 3, measured=None, crop_pct=crop_pct)
    evaluation = files.transform(config, preprocessing, training=False)
    training = files.transform(config, preprocessing, training=True)
    train, test = (
        None
        if split is None
        else FileLoader(
            files.limited(split, limit),
            evaluation=evaluation,
            training=transform,
            batch_size=batch_size,
            workers=config.workers,
            seed=seed,
        )
        for split, limit, batch_size, transform in (
            (found.train, config.limit_train, config.batch_size, training),
            (found.test, config.limit_test, config.eval_batch_size, None),
        )
    )
    bound = task.bind(len(found.class_names), preprocessing.input_size)
    return Data(bound, preprocessing, train, test, found.class_names)


def _fixed(hint: Mapping[str, Any]) -> bool:
    return bool(hint.get("fixed_input_size")) and bool(hint.get("input_size"))
