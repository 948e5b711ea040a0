from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluators.datasets.batch import Batch, Inputs, joined

IMAGES = torch.arange(10.0).view(5, 2)


@pytest.mark.parametrize(
    "inputs",
    [
        IMAGES,
        (IMAGES, torch.arange(5)),
        {"images": IMAGES, "sizes": torch.arange(5)},
        list(IMAGES),  # as detectors take images, each of a size of its own
    ],
)
def test_a_batch_is_cut_joined_and_moved_whatever_its_inputs_are(inputs: Inputs) -> None:
    batch = Batch(inputs, [{"boxes": image} for image in IMAGES], torch.arange(5))
    assert len(batch) == 5
    parts = list(batch.split(2))
    assert [len(part) for part in parts] == [2, 2, 1] and torch.equal(
        torch.as_tensor(parts[1].index), torch.tensor([2, 3])
    )
    whole = joined(parts)
    there = whole.to("meta")
    assert type(whole.inputs) is type(inputs) and len(whole.targets) == 5
    for one, other in zip(tensors(whole), tensors(batch), strict=True):
        assert torch.equal(one, other)
    assert all(tensor.is_meta for tensor in tensors(there))


def tensors(batch: Batch) -> list[Any]:
    inputs, targets = batch.inputs, [target["boxes"] for target in batch.targets]
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple | list) else [inputs]
    return [*values, *targets]


def test_a_copy_shares_no_inputs() -> None:
    batch = Batch(IMAGES.clone(), torch.arange(5))
    copy = batch.to("cpu", copy=True)
    assert isinstance(copy.inputs, torch.Tensor)
    copy.inputs.zero_()
    assert torch.equal(batch.inputs, IMAGES)  # type: ignore[arg-type]
