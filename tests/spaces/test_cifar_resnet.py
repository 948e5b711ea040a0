from __future__ import annotations

import pytest
import torch

from spaces.cifar_resnet import PadShortcut, cifar_resnet


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    x = torch.randn(2, 4, 6, 6)
    y = PadShortcut(2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().sum() == 0 and y[:, 6:].abs().sum() == 0


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_maps_images_to_logits(shortcut: str) -> None:
    model = cifar_resnet(20, num_classes=7, in_chans=1, shortcut=shortcut).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_names_are_those_of_the_published_checkpoints() -> None:
    names = set(cifar_resnet(20, shortcut="B").state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.2.conv2.weight", "layer2.0.downsample.1.bias"} < names
    assert "linear.weight" in names


@pytest.mark.parametrize("depth", [2, 21, 0])
def test_refuses_depth_that_is_not_six_n_plus_two(depth: int) -> None:
    with pytest.raises(ValueError, match="6n"):
        cifar_resnet(depth)
