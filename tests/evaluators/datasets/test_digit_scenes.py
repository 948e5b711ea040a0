"""Images made of digits, with masks and with boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import TypeAdapter

from compress.testing.datasets import check_dataset
from evaluators.datasets import Data, DataFacts, digit_scenes
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.datasets.digits import digits
from evaluators.datasets.digits_detection import DigitsDetectionConfig
from evaluators.datasets.holdout import resized, set_apart, with_holdout
from evaluators.datasets.kept import kept
from evaluators.datasets.samples import SampleLoader
from evaluators.tasks import DEFAULT

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)
FEW = {"samples": 40, "test_samples": 20, "batch_size": 8, "eval_batch_size": 8}
KINDS = ("segmentation", "detection")


@dataclass
class Anything:
    """Stands for a task of any kind of targets."""

    targets: ClassVar[str | None] = None
    name: str = "anything"

    def bind(self, num_outputs: int, input_size: tuple[int, ...]) -> Any:
        return DEFAULT.bind(num_outputs, input_size)


def opened(kind: str, seed: int = 0, **options: Any) -> Data:
    config = adapter.validate_python({"name": f"digits_{kind}", **FEW, **options})
    data = config.load(Anything(), seed=seed)
    assert isinstance(data, Data)
    return data


def loaders(data: Data) -> tuple[SampleLoader, SampleLoader]:
    assert isinstance(data.train, SampleLoader) and isinstance(data.test, SampleLoader)
    return data.train, data.test


@pytest.mark.parametrize("kind", KINDS)
def test_made_sets_are_what_data_sets_have_to_be(kind: str) -> None:
    config = adapter.validate_python({"name": f"digits_{kind}", **FEW})
    check_dataset(config, Anything())  # type: ignore[arg-type]
    assert config.describe() == DataFacts(11, 64, 3)


def test_masks_and_boxes_are_of_the_same_digits() -> None:
    masks = next(iter(loaders(opened("segmentation"))[1].batches()))
    boxes = next(iter(loaders(opened("detection"))[1].batches()))
    assert masks.inputs.shape == (8, 3, 64, 64) and masks.targets.shape == (8, 64, 64)
    assert masks.targets.dtype == torch.int64 and isinstance(boxes.inputs, list)
    assert torch.equal(masks.inputs, torch.stack(boxes.inputs))
    for mask, target in zip(masks.targets, boxes.targets, strict=True):
        assert sorted(set(mask.unique().tolist()) - {0}) == sorted(set(target["labels"].tolist()))
        inside = torch.zeros_like(mask)
        for (left, top, right, bottom), label in zip(target["boxes"].int().tolist(), target["labels"], strict=True):
            inside[top:bottom, left:right] = 1
            ink = mask[top:bottom, left:right] == label
            assert ink.float().mean() > 0.2  # others hide little of it
        assert not bool(mask[inside == 0].any())


def test_a_box_touches_its_digit_on_all_sides_where_nothing_hides_it() -> None:
    touching = 0
    train, _ = DigitsDetectionConfig(name="digits_detection", **FEW).made()  # type: ignore[arg-type]
    for mask, boxes, labels in zip(train.masks, train.boxes, train.labels, strict=True):
        if len(boxes) == 1:
            rows, columns = (mask == labels[0]).any(1).nonzero(), (mask == labels[0]).any(0).nonzero()
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert [int(edge) for edge in around] == boxes[0].tolist()
            touching += 1
    assert touching > 3


def test_training_and_test_images_are_made_of_other_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = digits()
    told = replace(found, train_labels=torch.zeros_like(found.train_labels), test_labels=found.test_labels * 0 + 9)
    monkeypatch.setattr(digit_scenes, "digits", lambda: told)
    train, test = digit_scenes._made.__wrapped__(32, 20, 20, 5)
    assert (set(torch.cat(train.labels).tolist()), set(torch.cat(test.labels).tolist())) == ({1}, {10})


def test_images_are_the_same_for_every_seed_of_a_recipe_and_others_for_another_number_of_scenes() -> None:
    def first(**options: Any) -> torch.Tensor:
        return next(iter(loaders(opened("segmentation", **options))[1].batches())).inputs

    assert torch.equal(first(seed=0), first(seed=1))
    assert not torch.equal(first(), first(scenes=1))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_other_sizes_of_made_sets(kind: str) -> None:
    data = opened(kind)
    train, held = loaders(with_holdout(data, 0.25, 0))
    assert (train.num_samples, held.num_samples, held.training) == (30, 10, None)
    assert not set(train.samples.indices) & set(held.samples.indices)
    divided = set_apart(data, 8, 0)
    assert divided is not None and divided[1].num_samples == 8 and divided[0].test is data.test
    small = resized(data, 32)
    own, other = (next(iter(loaders(each)[1].batches())) for each in (data, small))
    assert small.image_size == 32 and other.inputs[0].shape == (3, 32, 32)
    if kind == "detection":
        for one, half in zip(own.targets, other.targets, strict=True):
            assert torch.allclose(one["boxes"] / 2, half["boxes"]) and torch.equal(one["labels"], half["labels"])
    else:
        assert other.targets.shape == (8, 32, 32)
    again = [batch.inputs[0] for batch in kept(loaders(data)[1], "cpu").batches()]
    assert all(torch.equal(one, batch.inputs[0]) for one, batch in zip(again, loaders(data)[1].batches(), strict=True))


def test_worker_processes_give_the_same_batches() -> None:
    one, two = (list(loaders(opened("detection", workers=n))[0].epoch(1)) for n in (0, 2))
    for mine, other in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.inputs, other.inputs, strict=True))
        for a, b in zip(mine.targets, other.targets, strict=True):
            assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])


def test_targets_of_another_kind_are_refused_before_anything_runs() -> None:
    data = adapter.validate_python({"name": "digits_detection"})
    assert data.misfit(DEFAULT) == (
        "digits_detection has boxes as targets, and task classification learns from classes"
    )
    assert adapter.validate_python({"name": "digits"}).misfit(DEFAULT) is None
