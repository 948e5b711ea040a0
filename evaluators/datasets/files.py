"""Sets of image files: folders by class, and Hugging Face data sets through timm."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.arrays import balanced
from evaluators.datasets.config import HuggingFaceConfig, ImageFolderConfig
from evaluators.datasets.decoding import ENDINGS, ToChannels, read
from evaluators.datasets.loaders import ImageFiles
from evaluators.datasets.preprocessing import Preprocessing

_TEST_FOLDERS = ("val", "test", "validation")
_SYSTEM = ("__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")


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
    """Return timm's transform from what `decode` returns to a normalised tensor (C, H, W)."""
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import Compose

    augmented = training and config.augment == "timm"
    _, height, width = preprocessing.input_size
    try:
        result = create_transform(
            (height, width),
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
    bytes_only = "data.auto_augment" if augmented and config.auto_augment else None
    composed: Callable[[Any], Tensor] = Compose([ToChannels(preprocessing.input_size[0], bytes_only), result])
    return composed


def _image_folder(config: ImageFolderConfig) -> FileSet:
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise InputError(f"data.path: there is no directory {config.path!r}")
    test_folder = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test_folder is None:
        raise InputError(f"data.path: {config.path!r} has none of {', '.join(n + '/' for n in _TEST_FOLDERS)}")
    test, classes = _folder(test_folder)
    train = None
    if (root / "train").is_dir():
        train, train_classes = _folder(root / "train")
        lonely = [f"{name!r} only in train/" for name in train_classes if name not in classes]
        lonely += [f"{name!r} only in {test_folder.name}/" for name in classes if name not in train_classes]
        if lonely:
            raise InputError(
                f"data.path: {config.path!r} has the class {_some(lonely)}; both folders need the same classes"
            )
    return FileSet(train, test, classes)


def _folder(folder: Path) -> tuple[ImageFiles, list[str]]:
    """List the images of a folder of class folders, in the order of their names; what is hidden is left out."""
    from torchvision.datasets.folder import make_dataset

    def wanted(path: str) -> bool:
        inside = Path(path).relative_to(folder)
        return inside.suffix.lower() in ENDINGS and not any(_hidden(part) for part in inside.parts)

    where = f"data.path: {str(folder)!r}"
    try:
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry.name))
        numbers = {name: number for number, name in enumerate(classes)}
        samples = make_dataset(str(folder), numbers, is_valid_file=wanted, allow_empty=True) if classes else []
    except OSError as error:
        raise InputError(f"{where} cannot be listed ({error.strerror or error})") from error
    if not classes:
        raise InputError(f"{where} holds no class folders; images are expected in {folder.name}/CLASS/")
    labels = [label for _, label in samples]
    empty = [repr(classes[number]) for number in sorted(set(numbers.values()) - set(labels))]
    if empty:
        raise InputError(f"{where} has no images of the class {_some(empty)}; allowed endings: {', '.join(ENDINGS)}")
    if len(classes) < 2:
        raise InputError(f"{where} holds only the class {classes[0]!r}; two are needed")
    reader = _FolderReader([path for path, _ in samples])
    return ImageFiles(reader, labels, range(len(labels)), reader.name), classes


def _hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a tool's own, such as .ipynb_checkpoints or ._photo.jpg."""
    return name.startswith(".") or name in _SYSTEM


def _some(items: list[str], limit: int = 5) -> str:
    """Return the first of `items` in words."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


@dataclass(frozen=True)
class _FolderReader:
    paths: list[str]

    def __call__(self, index: int) -> Any:
        return read(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]


@dataclass(frozen=True)
class _HubReader:
    reader: Any  # not timm's data set around it, which takes the next image in place of a damaged one

    def __call__(self, index: int) -> Any:
        return read(self.reader[index][0])


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
    files = [_hub_files(config, split, len(names)) for split in (train, test)]
    return FileSet(files[0], files[1], sorted(names, key=names.__getitem__))


def _hub_split(config: HuggingFaceConfig, key: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    split = getattr(config, key)
    if split is None:
        return None
    try:
        return create_dataset(
            f"hfds/{config.dataset}",
            root=None if config.path is None else str(Path(config.path).expanduser()),
            split=split,
            input_key=config.image_key,
            target_key=config.label_key,
        )
    except Exception as error:  # the hub client raises a family of its own, requests' and pyarrow's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"data.dataset: cannot open {key} {split!r} of {config.dataset!r}: {reason}") from error


def _hub_files(config: HuggingFaceConfig, split: Any, classes: int) -> ImageFiles | None:
    if split is None:
        return None
    labels = [int(label) for label in split.reader.iter_targets()]
    wrong = next((label for label in labels if not 0 <= label < classes), None)
    if wrong is not None:  # published test splits often say -1, for unknown
        raise InputError(
            f"data.label_key: {config.label_key!r} of {config.dataset!r} holds the label {wrong}; "
            f"allowed: 0 to {classes - 1}; take a split with labels"
        )
    return ImageFiles(_HubReader(split.reader), labels, range(len(labels)), "row {}".format)
