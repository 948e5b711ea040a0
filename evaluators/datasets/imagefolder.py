"""Folders of images by class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.core.errors import InputError
from evaluators.datasets.dataset import datasets
from evaluators.datasets.decoding import ENDINGS, read
from evaluators.datasets.image_files import Files, FileSet
from evaluators.datasets.samples import Samples, classified

_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("val", "validation", "valid", "test", "testing")
_SYSTEM = ("__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")


@datasets.register("imagefolder")
class ImageFolderConfig(Files):
    """A directory with train/CLASS/*.jpg (or training/) and val/CLASS/*.jpg (or test/, validation/, valid/, testing/).

    Classes are numbered in the order of their names as texts, as torchvision does: 0, 1, 10, 2.
    Grey images of more than 8 bits keep their levels: 16-bit PNG, TIFF and PGM are taken as 0 (black) to 65535 (white),
    float TIFF and PFM as 0 to 1; levels outside are refused. Hidden folders and files are left out, and so are files
    that are no images by their ending. Of an animation the first frame counts; transparency is dropped.
    """

    name: Literal["imagefolder"]
    path: str = Field(min_length=1, description="the directory that holds train/ and val/ or test/")

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the folder."""
        yield "path", self.path

    def open(self) -> FileSet:
        """List the images of both folders."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise InputError(f"data.path: there is no directory {self.path!r}")
        test_folder, train_folder = _called(root, _TEST_FOLDERS), _called(root, _TRAIN_FOLDERS)
        if test_folder is None:
            raise InputError(f"data.path: {self.path!r} has none of {', '.join(n + '/' for n in _TEST_FOLDERS)}")
        test, classes = _folder(test_folder)
        train = None
        if train_folder is not None:
            train, train_classes = _folder(train_folder)
            lonely = [f"{name!r} only in {train_folder.name}/" for name in train_classes if name not in classes]
            lonely += [f"{name!r} only in {test_folder.name}/" for name in classes if name not in train_classes]
            if lonely:
                raise InputError(
                    f"data.path: {self.path!r} has the class {_some(lonely)}; both folders need the same classes"
                )
        return FileSet(train, test, classes)


def _called(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first folder of `root` that is called like one of `names`, in these letters or else in capitals."""
    spelt = (root / form(name) for form in (str.lower, str.capitalize, str.upper) for name in names)
    return next((folder for folder in spelt if folder.is_dir()), None)


def _folder(folder: Path) -> tuple[Samples, list[str]]:
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
    return classified(reader, labels, reader.name), classes


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
