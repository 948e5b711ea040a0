"""Sets of image files: folders by class, and Hugging Face data sets through timm."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress.errors import InputError
from evaluators.datasets.arrays import balanced
from evaluators.datasets.config import HuggingFaceConfig, ImageFolderConfig
from evaluators.datasets.loaders import ImageFiles
from evaluators.datasets.preprocessing import Preprocessing

_TEST_FOLDERS = ("val", "test", "validation")


@dataclass(frozen=True)
class FileSet:
    """The splits that there are, and the class names in label order."""

    train: ImageFiles | None
    test: ImageFiles | None
    class_names: list[str]


def open_set(config: ImageFolderConfig | HuggingFaceConfig) -> FileSet:
    """List the images and labels of a set without reading any image."""
    return _image_folder(config) if isinstance(config, ImageFolderConfig) else _hugging_face(config)


def limited(files: ImageFiles, limit: int | None) -> ImageFiles:
    """Return `limit` of the images, as many of each class as can be."""
    if limit is None or limit >= len(files.labels):
        return files
    return replace(files, indices=balanced(np.asarray(files.labels), limit).tolist())


def transform(
    config: ImageFolderConfig | HuggingFaceConfig, preprocessing: Preprocessing, training: bool
) -> Callable[[Any], Tensor]:
    """Return timm's transform from a PIL image to a normalised tensor (C, H, W)."""
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import Compose, Grayscale

    augmented = training and config.augment == "timm"
    try:
        result = create_transform(
            preprocessing.input_size,
            is_training=augmented,
            scale=(config.crop_scale, 1.0),
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            re_prob=config.random_erase,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            crop_pct=preprocessing.crop_pct,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise InputError(f"data.auto_augment: timm has no policy {config.auto_augment!r} ({error})") from error
    grey = [Grayscale(1)] if preprocessing.input_size[0] == 1 else []
    composed: Callable[[Any], Tensor] = Compose([*grey, result])
    return composed


def _image_folder(config: ImageFolderConfig) -> FileSet:
    root = Path(config.path)
    if not root.is_dir():
        raise InputError(f"data.path: there is no directory {config.path!r}")
    test_folder = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test_folder is None:
        raise InputError(f"data.path: {config.path!r} has none of {', '.join(n + '/' for n in _TEST_FOLDERS)}")
    test, classes = _folder(test_folder)
    train = None
    if (root / "train").is_dir():
        train, train_classes = _folder(root / "train")
        for name in sorted(set(train_classes) ^ set(classes)):
            where = "train/" if name in train_classes else f"{test_folder.name}/"
            raise InputError(f"data.path: {config.path!r} has the class {name!r} only in {where}")
    return FileSet(train, test, classes)


def _folder(folder: Path) -> tuple[ImageFiles, list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"data.path: {str(folder)!r} holds no class folders with images ({error})") from error
    if len(found.classes) < 2:
        raise InputError(f"data.path: {str(folder)!r} holds only the class {found.classes[0]!r}; two are needed")
    reader = _FolderReader([path for path, _ in found.samples])
    return ImageFiles(reader, found.targets, range(len(found))), found.classes


@dataclass(frozen=True)
class _FolderReader:
    paths: list[str]

    def __call__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class _HubReader:
    dataset: Any

    def __call__(self, index: int) -> Any:
        return self.dataset[index][0].convert("RGB")


def _hugging_face(config: HuggingFaceConfig) -> FileSet:
    if importlib.util.find_spec("datasets") is None:
        raise InputError("data.name: huggingface needs the package datasets; install it with `pip install datasets`")
    train, test = (_hub_split(config, key) for key in ("train_split", "test_split"))
    some = test if train is None else train
    if some is None:
        raise InputError("data.test_split: both splits are null; name at least one")
    names = some.reader.class_to_idx
    if not names:
        raise InputError(f"data.label_key: {config.label_key!r} of {config.dataset!r} is not a column of classes")
    return FileSet(_hub_files(train), _hub_files(test), sorted(names, key=names.__getitem__))


def _hub_split(config: HuggingFaceConfig, key: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    split = getattr(config, key)
    if split is None:
        return None
    try:
        return create_dataset(
            f"hfds/{config.dataset}",
            root=config.path,
            split=split,
            input_key=config.image_key,
            target_key=config.label_key,
        )
    except Exception as error:  # the hub client raises a family of its own, requests' and pyarrow's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"data.dataset: cannot open {key} {split!r} of {config.dataset!r}: {reason}") from error


def _hub_files(split: Any) -> ImageFiles | None:
    if split is None:
        return None
    labels = [int(label) for label in split.reader.iter_targets()]
    return ImageFiles(_HubReader(split), labels, range(len(labels)))
