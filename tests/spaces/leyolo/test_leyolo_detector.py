"""The detector as a module: torchvision's convention, images of several sizes, what the heads give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.testing.spaces import enliven
from spaces.leyolo.found import found_in
from spaces.registry import open_preset


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    space, arch = open_preset("leyolo", "digits-small")
    model = space.build(arch or {}, space.task(4, 3, 64))
    enliven(model)
    return model.eval()


def test_every_image_is_searched_within_its_own_size(detector: nn.Module) -> None:
    images = [torch.randn(3, 64, 48), torch.randn(3, 40, 64)]
    with torch.no_grad():
        found = detector(images)
        padded = torch.zeros(2, 3, 64, 64)
        for place, image in zip(padded, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        heads = detector.heads(padded)  # type: ignore[operator]
    scores = heads["logits"].sigmoid()
    assert heads["boxes"].shape == (2, 256 + 64 + 16, 4) and heads["logits"].shape == (2, 336, 3)
    for place, (each, image) in enumerate(zip(found, images, strict=True)):
        height, width = image.shape[1:]
        expected = found_in(heads["boxes"][place], scores[place], (height, width), 0.001, 0.7, 100)
        assert len(each["scores"]) > 0 and all(torch.equal(each[name], expected[name]) for name in expected)
        assert bool((each["boxes"] <= torch.tensor([width, height, width, height])).all())
        assert set(each["labels"].tolist()) <= {1, 2, 3}
        assert bool(each["scores"].diff().le(0).all())


def test_in_training_it_gives_losses_and_asks_for_targets(detector: nn.Module) -> None:
    detector.train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    losses = detector(torch.randn(2, 3, 64, 64), [target, target])
    assert set(losses) == {"classes", "boxes", "distances"} and all(loss.ndim == 0 for loss in losses.values())
    with pytest.raises(ValueError, match="needs the targets"):
        detector(torch.randn(2, 3, 64, 64))
    detector.eval()
