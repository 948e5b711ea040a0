"""Masks and boxes move along with their image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision import tv_tensors

from evaluators.datasets import Preprocessing
from evaluators.datasets.joint import IGNORED, Augmentation, JointTransform, boxed

PLAIN = Preprocessing((3, 48, 64), (0.0,) * 3, (1.0,) * 3)
DRAWN = {
    "none": Augmentation(),
    "flip": Augmentation(flip=1.0),
    "smaller": Augmentation(scale=(0.5, 0.6)),
    "larger": Augmentation(scale=(1.7, 2.0)),
    "colours": Augmentation(color_jitter=0.2),
    "all": Augmentation(0.5, (0.5, 2.0), 0.2),
}


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image with a white rectangle on black, and its mask with class 3."""
    left, top, right, bottom = box
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[top:bottom, left:right] = 3
    return ((mask > 0) * 255).byte().expand(3, -1, -1).contiguous(), mask


def around(inside: torch.Tensor) -> torch.Tensor:
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


@pytest.mark.parametrize("how", [None, *DRAWN])
@pytest.mark.parametrize("size", [(48, 64), (100, 80), (30, 90)])
def test_a_box_around_a_rectangle_stays_around_it(how: str | None, size: tuple[int, int]) -> None:
    box = (size[1] // 3, size[0] // 4, size[1] * 3 // 4, size[0] * 2 // 3)
    image, mask = rectangle(size, box)
    transform = JointTransform(PLAIN, None if how is None else DRAWN[how])
    for seed in range(8):
        target = boxed(torch.tensor([box]), torch.tensor([7]), size, iscrowd=torch.tensor([0]))
        torch.manual_seed(seed)
        pixels, moved = transform(image, target)
        torch.manual_seed(seed)
        again, numbers = transform(image, tv_tensors.Mask(mask))
        assert torch.equal(pixels, again) and pixels.shape == (3, 48, 64) and numbers.shape == (48, 64)
        bright = pixels[0] > pixels[0].max() / 2
        if not len(moved["boxes"]):  # cut off
            assert not bool((numbers == 3).any())
            continue
        (found,) = moved["boxes"]
        assert (around(bright) - found).abs().max() < 1.5
        assert (around(numbers == 3) - found).abs().max() < 1.5
        assert ((numbers == 3) != bright).float().mean() < 0.02
        assert moved["labels"].tolist() == [7] and moved["iscrowd"].tolist() == [0]
        assert set(numbers.unique().tolist()) <= {0, 3, IGNORED}


def test_what_fills_up_is_the_mean_colour_and_does_not_count() -> None:
    mean = (0.4, 0.6, 0.2)
    image = torch.full((3, 20, 80), 255, dtype=torch.uint8)
    transform = JointTransform(Preprocessing((3, 64, 64), mean, (1.0,) * 3), ignored=-1)
    pixels, numbers = transform(image, tv_tensors.Mask(torch.ones(20, 80, dtype=torch.uint8)))
    assert numbers.dtype == torch.int64 and set(numbers.unique().tolist()) == {-1, 1}
    rows = (numbers == 1).all(1)
    assert int(rows.sum()) == 16 and bool(rows[24:40].all())
    assert pixels[:, ~rows].abs().max() < 0.01 and (pixels[0, rows] - 0.6).abs().max() < 0.01


def test_boxes_that_are_cut_off_are_dropped_in_training_with_what_belongs_to_them() -> None:
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    target = boxed(torch.tensor([[0, 0, 3, 3], [20, 15, 44, 33]]), torch.tensor([1, 2]), (48, 64))
    torch.manual_seed(0)
    lost = 0
    for _ in range(20):
        _, moved = JointTransform(PLAIN, Augmentation(scale=(1.9, 2.0)))(image, dict(target))
        sides = moved["boxes"][:, 2:] - moved["boxes"][:, :2]
        assert len(moved["boxes"]) == len(moved["labels"]) and bool((sides >= 1).all())
        assert bool((moved["boxes"] >= 0).all()) and bool((moved["boxes"] <= torch.tensor([64, 48, 64, 48])).all())
        lost += 1 not in moved["labels"].tolist()
    assert lost > 5
    tiny = boxed(torch.tensor([[5.0, 5.0, 5.5, 5.5]]), torch.tensor([1]), (48, 64))
    assert len(JointTransform(PLAIN)(image, dict(tiny))[1]["boxes"]) == 1  # what is judged by stays whole
    assert len(JointTransform(PLAIN, Augmentation())(image, dict(tiny))[1]["boxes"]) == 0


def test_images_without_objects_and_deep_grey_images_are_fine() -> None:
    none: Any = boxed(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (96, 128))
    for drawn in (None, DRAWN["all"]):
        pixels, moved = JointTransform(PLAIN, drawn)(torch.full((1, 96, 128), 0.5), dict(none))
        assert pixels.shape == (3, 48, 64) and moved["boxes"].shape == (0, 4)
    grey = JointTransform(Preprocessing((1, 48, 64), (0.5,), (0.5,)))(torch.zeros(3, 48, 64, dtype=torch.uint8), none)
    assert grey[0].shape == (1, 48, 64) and bool((grey[0] == -1).all())
