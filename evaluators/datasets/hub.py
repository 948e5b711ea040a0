"""Splits of the Hugging Face hub, or in its formats in a directory: opened, and their columns looked for."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field

from compress.core.errors import InputError
from evaluators.datasets.decoding import reason
from evaluators.datasets.sample_sets import SampleImages

NEEDED = "needs the package datasets; install it with `pip install datasets`"


class Hub(SampleImages):
    """A data set of the hub, or a directory: of files as the hub holds them, or written by `save_to_disk`."""

    dataset: str = Field(min_length=1, description="name on the hub, or a directory")
    path: str | None = Field(None, description="cache directory; null: the hub's default")
    train_split: str | None = Field("train", description="split to train on; null: none")
    test_split: str = Field("validation", description="split to evaluate on")
    image_key: str = Field("image", description="column of the images")

    def splits(self, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
        """Yield the key and the rows (None without the split) of training and test split.

        Args:
            columns: key and name of those that are needed beside the images.

        Raises:
            InputError: the package, the data set, a split or a column is not there.
        """
        if importlib.util.find_spec("datasets") is None:
            raise InputError(f"data.name: {self.name} {NEEDED}")
        for key in ("train_split", "test_split"):
            split = getattr(self, key)
            yield key, None if split is None else self._opened(key, split, [("image_key", self.image_key), *columns])

    def _opened(self, key: str, split: str, columns: Sequence[tuple[str, str]]) -> Any:
        from datasets import Image, load_dataset, load_from_disk

        saved = Path(self.dataset).expanduser()
        cache = None if self.path is None else str(Path(self.path).expanduser())
        try:
            if (saved / "dataset_dict.json").is_file():
                rows = load_from_disk(str(saved))[split]
            else:
                rows = load_dataset(str(saved) if saved.is_dir() else self.dataset, split=split, cache_dir=cache)
        except Exception as error:  # the hub client raises a family of its own, requests' and pyarrow's
            raise InputError(
                f"data.dataset: cannot open {key} {split!r} of {self.dataset!r}: {reason(error)}"
            ) from error
        for name, column in columns:
            if column not in rows.column_names:
                there = ", ".join(rows.column_names)
                raise InputError(f"data.{name}: {self.dataset!r} has no column {column!r}; allowed: {there}")
            if isinstance(rows.features[column], Image):
                rows = rows.cast_column(column, Image(decode=False))
        if not len(rows):
            raise InputError(f"data.{key}: {split!r} of {self.dataset!r} has no rows")
        return rows


def image_file(value: Any) -> str | BinaryIO:
    """Return what an image in a row can be read from; InputError where it is none."""
    if isinstance(value, dict) and value.get("bytes"):
        return io.BytesIO(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return str(value["path"])
    raise InputError("its column holds no images")
