"""What a third party's data set gives is tried out when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets import Batch, Data, DataFacts, Dataset, Preprocessing
from evaluators.datasets.arrays import Arrays, ArraySet
from evaluators.tasks import DEFAULT, TaskConfig
from evaluators.tasks.opened import facts_of, opened

SIZE = (3, 8, 6)


class Split:
    batch_size, num_samples = 4, 4

    def __init__(self, change: Callable[[Batch], Any] = lambda batch: batch) -> None:
        self.change = change

    def __len__(self) -> int:
        return 1

    def batches(self) -> Iterator[Any]:
        yield self.change(Batch(torch.zeros(4, *SIZE), torch.arange(4) % 3))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return self.batches()


class Mine(Dataset):
    name: str = "mine"
    found: Any = None
    facts: Any = DataFacts(3, None, 3)

    def describe(self) -> DataFacts:
        return self.facts

    def load(self, task: TaskConfig, *hints: Any, **more: Any) -> Data | None:
        found: Data | None = self.found
        return found


def data(train: Any = None, test: Any = None, **more: Any) -> Data:
    given = Data(DEFAULT.bind(3, SIZE), Preprocessing(SIZE, (0.5,) * 3, (1.0,) * 3), train, test, ["a", "b", "c"])
    return replace(given, **more)


def inputs(change: Callable[[Tensor], Any]) -> Data:
    return data(Split(), Split(lambda batch: replace(batch, inputs=change(batch.inputs))))


def targets(change: Callable[[Tensor], Any]) -> Data:
    return data(Split(lambda batch: replace(batch, targets=change(batch.targets))), Split())


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "load gave None; allowed: a Data, where `absent` is False"),
        ((Split(), Split()), "load gave .*; allowed: a Data"),
        (data(task=DEFAULT), "the task of what load gave is .*; allowed: what task.bind gives"),
        (data(class_names=None), "class_names are None; allowed: a list of texts"),
        (data(task=DEFAULT.bind(5, SIZE)), "describe says 3 classes, and load opens 5"),
        (data([]), "train: list has no epoch"),
        (data(test=Split(lambda batch: (batch.inputs, batch.targets))), "test: a batch is tuple; allowed: .*Batch"),
        (data(Split(lambda batch: None)), "train: epoch yields no batches"),
        (inputs(Tensor.double), r"test: inputs are torch.float64 \(4, 3, 8, 6\); needed, .*float32 \(N, 3, 8, 6\)"),
        (inputs(lambda each: each.movedim(1, -1)), r"test: inputs are torch.float32 \(4, 8, 6, 3\); needed"),
        (inputs(lambda each: each / 0), "test: inputs hold NaN or infinity"),
        (inputs(list), "test: inputs are a list; allowed: one tensor"),
        (inputs(Tensor.numpy), "test: inputs are ndarray; allowed"),
        (inputs(lambda each: each[:0]), "test: a batch has no samples"),
        (targets(Tensor.float), "train: targets are torch.float32; needed: class numbers, int64"),
        (targets(Tensor.tolist), "train: targets are list; needed: class numbers, int64"),
        (targets(lambda each: each - 1), "train: a target is none of the 3 classes"),
    ],
)
def test_what_is_wrong_with_the_first_batches_is_one_sentence(found: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^data: mine: {words}"):
        opened(Mine(found=found), DEFAULT)


def test_data_that_fit_are_opened_whatever_the_size_of_training_images() -> None:
    train = Split(lambda batch: replace(batch, inputs=batch.inputs[..., :4]))
    assert opened(Mine(found=data(train, Split())), DEFAULT) is not None


@pytest.mark.parametrize("facts", [None, DataFacts("3", None, 3)])  # type: ignore[arg-type]
def test_facts_that_are_none_are_one_sentence(facts: Any) -> None:
    with pytest.raises(InputError, match=r"^data: mine\.describe gave .*; allowed"):
        facts_of(Mine(facts=facts))


class MyArrays(Arrays):
    name: str = "mine"
    found: Any = None

    def open(self) -> ArraySet:
        found: ArraySet = self.found
        return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"train_images": torch.zeros(6, 8, 8, 3)},
            r"train_images are torch.float32 \(6, 8, 8, 3\); allowed: .* uint8",
        ),
        ({"test_images": torch.zeros(0, 8, 8, 3, dtype=torch.uint8)}, "test_images are .*; allowed: .* with N > 0"),
        ({"train_images": torch.zeros(6, 3, 8, 8, dtype=torch.uint8)}, "the channels come last"),
        ({"test_images": torch.zeros(3, 6, 6, 3, dtype=torch.uint8)}, "train_images are .* each, test_images"),
        ({"train_labels": torch.zeros(6)}, r"train_labels are torch.float32 \(6,\); allowed: a tensor int64 \(6,\)"),
        ({"test_labels": ["a", "b", "a"]}, "test_labels are list; allowed"),
        ({"test_labels": torch.tensor([0, 1, 2])}, "test_labels hold 2; allowed: 0 to 1"),
        ({"class_names": []}, "class_names are .*; allowed: a list of one text for each class"),
    ],
)
def test_arrays_that_are_not_as_they_must_be_are_one_sentence(change: dict[str, Any], words: str) -> None:
    images, labels = torch.zeros(6, 8, 8, 3, dtype=torch.uint8), torch.arange(6) % 2
    found = ArraySet(images, labels, images[:3], labels[:3], ["a", "b"])
    assert MyArrays(found=found).describe() == DataFacts(2, 8, 3)
    with pytest.raises(InputError, match=f"^data: mine.open: .*{words}"):
        MyArrays(found=replace(found, **change)).describe()
    with pytest.raises(InputError, match="it gave NoneType; allowed"):
        MyArrays().describe()
