"""CIFAR and Fashion-MNIST through torchvision."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from pydantic import Field

from compress.core.errors import InputError
from evaluators.datasets.arrays import Arrays, ArraySet
from evaluators.datasets.dataset import datasets as registry
from evaluators.datasets.decoding import reason


@registry.register("torchvision")
class TorchvisionConfig(Arrays):
    """CIFAR-10, CIFAR-100 or Fashion-MNIST through torchvision, which checks the sums of files that it unpickles."""

    name: Literal["torchvision"]
    dataset: Literal["CIFAR10", "CIFAR100", "FashionMNIST"] = Field(description="name of the torchvision class")
    path: str = Field(min_length=1, description="directory that torchvision keeps the data in")
    download: bool = Field(False, description="fetch the data when it is not there")

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the folder, unless the set may be fetched to it."""
        if not self.download:
            yield "path", self.path

    def open(self) -> ArraySet:
        """Read the set."""
        return _torchvision(self.dataset, self.path, self.download)


def _alone(path: str) -> FileLock:
    """Return a lock under which one process at a time fetches what all of them want."""
    Path(path).mkdir(parents=True, exist_ok=True)
    return FileLock(Path(path) / ".download.lock")


@functools.lru_cache(maxsize=1)
def _torchvision(dataset: str, path: str, download: bool) -> ArraySet:
    from torchvision import datasets

    try:
        with _alone(path) if download else nullcontext():
            train, test = (getattr(datasets, dataset)(path, train=t, download=download) for t in (True, False))
    except Exception as error:  # of damaged files torchvision's readers raise nearly anything
        advice = "the download failed" if download else "set data.download to fetch it"
        raise InputError(f"data.path: {dataset} is not complete in {path!r} ({reason(error)}); {advice}") from error
    (x_train, y_train), (x_test, y_test) = (
        (torch.as_tensor(split.data), torch.as_tensor(split.targets)) for split in (train, test)
    )
    if x_train.ndim == 3:
        x_train, x_test = x_train.unsqueeze(3), x_test.unsqueeze(3)
    return ArraySet(x_train, y_train, x_test, y_test, [str(name) for name in train.classes])
