"""The shapes that the authors of TAS have published, rebuilt: MACs and parameters in millions.

The table lists what the networks of the published configuration files have (convolutions and the classifier count), and
the whole networks; the paper's own FLOPs agree with it to their printed digits in all but two rows.
"""

from __future__ import annotations

import pytest
import torch

from evaluators.cost import count_macs, count_params
from spaces.registry import open_preset
from spaces.resnet_shapes import ResNetShapesSpace

PUBLISHED = {
    "resnet20": ("3-3-3", 40.813, 0.2723),
    "resnet32": ("5-5-5", 69.125, 0.4667),
    "resnet56": ("9-9-9", 125.748, 0.8556),
    "resnet110": ("18-18-18", 253.150, 1.7305),
    "resnet164": ("18-18-18", 247.647, 1.7033),
    "tas-cifar10-resnet20": ("3-3-3", 22.444, 0.2281),
    "tas-cifar10-resnet32": ("5-5-5", 34.945, 0.3205),
    "tas-cifar10-resnet56": ("5-5-5", 59.858, 0.4493),
    "tas-cifar10-resnet56-compared": ("5-5-5", 59.451, 0.4415),
    "tas-cifar10-resnet110": ("11-11-9", 119.259, 0.7959),
    "tas-cifar10-resnet164": ("13-15-13", 178.071, 1.2779),
    "tas-cifar100-resnet20": ("3-3-3", 22.434, 0.2412),
    "tas-cifar100-resnet32": ("5-5-5", 42.469, 0.4273),
    "tas-cifar100-resnet32-compared": ("5-5-5", 42.493, 0.4274),
    "random-cifar100-resnet32": ("5-5-5", 42.909, 0.3364),
    "tas-cifar100-resnet56": ("5-5-7", 61.234, 0.4710),
    "tas-cifar100-resnet110": ("13-9-11", 119.578, 0.8437),
    "tas-cifar100-resnet164": ("15-15-15", 171.144, 1.3253),
}


def test_every_preset_is_in_the_table() -> None:
    assert set(ResNetShapesSpace.presets) == set(PUBLISHED)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_shapes_have_their_macs_and_parameters(preset: str) -> None:
    depths, macs, params = PUBLISHED[preset]
    space, arch = open_preset("resnet_shapes", preset)
    assert isinstance(space, ResNetShapesSpace)
    arch = arch or space.largest()
    task = space.task(num_outputs=100 if "cifar100" in preset else 10)
    assert "-".join(str(len(blocks)) for blocks in space.shape(arch).stages) == depths
    with torch.device("meta"):
        network = space.build(arch, task).eval()
        built = {"params": count_params(network)[0], "macs": count_macs(network, torch.empty(1, 3, 32, 32))}
    assert space.cost(arch, task) == built
    assert (round(built["macs"] / 1e6, 3), round(built["params"] / 1e6, 4)) == (macs, params)
