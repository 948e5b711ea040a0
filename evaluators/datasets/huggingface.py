"""Data sets of the Hugging Face hub, or in its format, through timm."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.core.errors import InputError
from evaluators.datasets.dataset import datasets
from evaluators.datasets.decoding import read
from evaluators.datasets.image_files import Files, FileSet
from evaluators.datasets.samples import Samples, classified


@datasets.register("huggingface")
class HuggingFaceConfig(Files):
    """A data set of the Hugging Face hub, or in its format, through timm."""

    name: Literal["huggingface"]
    dataset: str = Field(min_length=1, description="name on the hub, or a directory")
    path: str | None = Field(None, description="cache directory; null: the hub's default")
    train_split: str | None = Field("train", description="split to train on; null: none")
    test_split: str | None = Field("test", description="split to evaluate on; null: none")
    image_key: str = Field("image", description="column of the images")
    label_key: str = Field("label", description="column of the labels")

    def open(self) -> FileSet:
        """List the labels of both splits."""
        if importlib.util.find_spec("datasets") is None:
            raise InputError(
                "data.name: huggingface needs the package datasets; install it with `pip install datasets`"
            )
        train, test = (_hub_split(self, key) for key in ("train_split", "test_split"))
        some = test if train is None else train
        if some is None:
            raise InputError("data.test_split: both splits are null; name at least one")
        names = some.reader.class_to_idx
        if not names:
            raise InputError(f"data.label_key: {self.label_key!r} of {self.dataset!r} is not a column of classes")
        files = [_hub_files(self, split, len(names)) for split in (train, test)]
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


def _hub_files(config: HuggingFaceConfig, split: Any, classes: int) -> Samples | None:
    if split is None:
        return None
    labels = [int(label) for label in split.reader.iter_targets()]
    wrong = next((label for label in labels if not 0 <= label < classes), None)
    if wrong is not None:  # published test splits often say -1, for unknown
        raise InputError(
            f"data.label_key: {config.label_key!r} of {config.dataset!r} holds the label {wrong}; "
            f"allowed: 0 to {classes - 1}; take a split with labels"
        )
    return classified(_HubReader(split.reader), labels, "row {}".format)


@dataclass(frozen=True)
class _HubReader:
    reader: Any  # not timm's data set around it, which takes the next image in place of a damaged one

    def __call__(self, index: int) -> Any:
        return read(self.reader[index][0])
