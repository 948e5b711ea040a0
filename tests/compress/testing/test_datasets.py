"""What the checks of data sets find wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.testing.datasets import check_dataset
from evaluators.datasets.digits_detection import DigitsDetectionConfig
from evaluators.datasets.digits_segmentation import DigitsSegmentationConfig
from evaluators.datasets.sample_sets import SampleSet
from evaluators.datasets.samples import Samples
from evaluators.tasks import tasks

FEW: Any = {"samples": 8, "test_samples": 8, "batch_size": 4}


def changed(found: SampleSet, change: Callable[[Any], Any]) -> SampleSet:
    """Return the set with `change` of every target."""

    def read(samples: Samples | None) -> Samples:
        assert samples is not None

        def one(index: int) -> tuple[Any, Any]:
            image, target = samples.read(index)
            return image, change(target)

        return Samples(one, samples.indices)

    return SampleSet(read(found.train), read(found.test), found.class_names, found.statistics)


class Masks(DigitsSegmentationConfig):
    change: Any = None

    def open(self, task: Any) -> SampleSet:
        return changed(super().open(task), self.change)


class Boxes(DigitsDetectionConfig):
    change: Any = None

    def open(self, task: Any) -> SampleSet:
        return changed(super().open(task), self.change)


def shifted(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**target, "labels": target["labels"] - 1}


@pytest.mark.parametrize(
    "kind, change, words",
    [
        (Masks, lambda mask: type(mask)(mask + 11), "none of the 11 classes"),
        (Masks, lambda mask: torch.as_tensor(mask).float(), "masks, int64"),
        (Boxes, shifted, "labels are 1 to 10"),
        (Boxes, lambda target: {**target, "labels": target["labels"].float()}, "labels int64"),
    ],
)
def test_targets_that_are_not_of_their_kind_are_found(kind: Any, change: Any, words: str) -> None:
    name, task = ("digits_segmentation", "segmentation") if kind is Masks else ("digits_detection", "detection")
    check_dataset(kind(name=name, change=lambda target: target, **FEW), tasks.get(task)())
    with pytest.raises(AssertionError, match=words):
        check_dataset(kind(name=name, change=change, **FEW), tasks.get(task)())


def test_a_task_that_learns_from_something_else_is_found() -> None:
    with pytest.raises(AssertionError, match="learns from masks"):
        check_dataset(DigitsDetectionConfig(name="digits_detection", **FEW), tasks.get("segmentation")())
