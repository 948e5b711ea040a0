"""Once-for-All's weight sharing: the active sub-net is the stand-alone one, and only it runs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.core.batch_norm import recalibrate
from compress.core.errors import InputError
from spaces.mobilenetv3 import MobileNetV3Space
from spaces.mobilenetv3.elastic import ElasticBottleneck
from spaces.mobilenetv3.supernet import MobileNetV3Supernet
from spaces.registry import create

SMALL: dict[str, Any] = {"dataset": "cifar", "strides": (2, 1, 2, 2, 2, 1, 2)}
COARSE: dict[str, Any] = {"dataset": "cifar", "strides": (2, 1, 2, 2, 1, 2)}


def open_supernet(disturb: bool = True, **options: Any) -> tuple[MobileNetV3Space, MobileNetV3Supernet]:
    """Return a space and its supernet; `disturb` gives norms and kernel matrices values that show every mix-up."""
    space = create("mobilenetv3", options)
    assert isinstance(space, MobileNetV3Space)
    supernet = space.supernet()
    assert isinstance(supernet, MobileNetV3Supernet)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in supernet.state_dict().items():
            if disturb and ("norm" in name or "matrices" in name or "bias" in name) and value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return space, supernet


def images(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def searched_blocks(supernet: MobileNetV3Supernet) -> list[ElasticBottleneck]:
    """Return all blocks but the first, of which there is one variant."""
    return [module for module in supernet.modules() if isinstance(module, ElasticBottleneck)][1:]


@pytest.mark.parametrize(
    "options",
    [
        {"skeleton": "ofa", **SMALL},
        {"skeleton": "large", "se": "searched", "widths": (0.5, 0.75, 1.0), **SMALL},
        {
            "skeleton": "small",
            "resolutions": (24, 32),
            "widths": (0.5, 1.0),
            "expands": (1, 3.67, 6),
            "dataset": "cifar",
        },
        {"skeleton": "v2", "kernels": (3, 7), "width": 0.5, "dataset": "cifar"},
    ],
    ids=lambda options: options["skeleton"],
)
def test_active_sub_net_is_the_extracted_one(options: dict[str, Any]) -> None:
    space, supernet = open_supernet(**options)
    generator = random.Random(6)
    for _ in range(8 if options["skeleton"] == "ofa" else 5):
        arch = space.sample(generator)
        supernet.activate(arch)
        alone, batch = supernet.extract(), images(space.input_size(arch))
        for training in (False, True):
            with torch.no_grad():
                difference = (supernet.train(training)(batch) - alone.train(training)(batch)).abs().max()
            assert difference <= 1e-5, (training, arch)
        state = alone.state_dict()
        for name, value in supernet.inherited(arch).items():  # also the statistics, which training has moved
            torch.testing.assert_close(state[name], value, msg=name)


def test_only_the_active_path_gets_gradients() -> None:
    space, supernet = open_supernet(skeleton="small", **COARSE)
    supernet.activate(space.parse({"ks": 5, "e": 3, "d": 2}))
    supernet(images()).sum().backward()
    for number, stage in enumerate(list(supernet.shared.stages)[1:], 2):
        for layer, block in enumerate(stage.children(), 1):
            for name, parameter in block.named_parameters():
                used = layer <= 2 and name != "matrices.3"
                assert (parameter.grad is not None) == used, (number, layer, name)
    first = searched_blocks(supernet)[0]
    assert first.expand is not None and first.expand.weight.grad is not None
    gradient = first.expand.weight.grad.abs().sum((1, 2, 3))
    assert gradient[:48].all() and not gradient[48:].any()


def test_gradients_are_those_of_the_stand_alone_network() -> None:
    space, supernet = open_supernet(skeleton="small", **COARSE, widths=(0.5, 1.0))
    supernet.activate(space.sample(random.Random(7)))
    alone = supernet.train().extract()
    for network in (alone, supernet):
        network(images()).square().sum().backward()
    shared = dict(supernet.shared.named_parameters())
    for name, parameter in alone.named_parameters():
        if not name.endswith("depthwise.weight"):
            gradient = shared[name].grad
            assert gradient is not None
            corner = gradient[tuple(slice(size) for size in parameter.shape)]
            torch.testing.assert_close(corner, parameter.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_fresh_kernel_matrices_give_the_centre_crop() -> None:
    _, supernet = open_supernet(disturb=False)
    for block in searched_blocks(supernet):
        weight = block.depthwise.weight
        assert torch.equal(block.kernel(24, 7), weight[:24])
        assert torch.equal(block.kernel(24, 5), weight[:24, :, 1:6, 1:6])
        assert torch.equal(block.kernel(24, 3), weight[:24, :, 2:5, 2:5])


def test_kernel_matrices_follow_each_other() -> None:
    _, supernet = open_supernet()
    block = searched_blocks(supernet)[0]
    seven = block.depthwise.weight[:8]
    five = (block.matrices["5"] @ seven[:, 0, 1:6, 1:6].reshape(8, 25, 1)).reshape(8, 1, 5, 5)
    three = (block.matrices["3"] @ five[:, 0, 1:4, 1:4].reshape(8, 9, 1)).reshape(8, 1, 3, 3)
    torch.testing.assert_close(block.kernel(8, 5), five)
    torch.testing.assert_close(block.kernel(8, 3), three)


def test_sorting_channels_keeps_the_largest_network() -> None:
    space, supernet = open_supernet(se="searched", widths=(0.5, 1.0), **SMALL)
    supernet.eval()
    before = supernet(images())
    supernet.sort_channels()
    assert (supernet(images()) - before).abs().max() <= 1e-5
    for block in searched_blocks(supernet):
        norms = block.project.weight.abs().sum((0, 2, 3))
        assert (norms.diff() <= 1e-4).all()
    supernet.activate(space.parse({"ks": 7, "e": 3, "d": 4, "w": 1.0, "se": True}))
    assert (supernet(images()) - before).abs().max() > 1e-4


def test_statistics_of_a_narrow_sub_net_are_the_first_of_the_shared_ones() -> None:
    space, supernet = open_supernet(disturb=False, skeleton="small", **COARSE)
    supernet.activate(space.parse({"ks": 3, "e": 3, "d": 2}))
    supernet.train()(images())
    norm = searched_blocks(supernet)[0].depthwise_norm
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    assert norm.running_mean[:48].all() and not norm.running_mean[48:].any()
    assert norm.num_batches_tracked == 1


def test_recalibration_works_on_the_active_sub_net() -> None:
    space, supernet = open_supernet(skeleton="tiny", dataset="cifar")
    supernet.activate(space.sample(random.Random(8)))
    batches = [images(batch=4), images(batch=4).flip(0) * 2]
    alone = supernet.extract()
    recalibrate(alone, batches, limit=2)
    recalibrate(supernet, batches, limit=2)
    assert (supernet.eval()(images()) - alone.eval()(images())).abs().max() <= 1e-5


def test_an_illegal_architecture_changes_nothing() -> None:
    space, supernet = open_supernet(skeleton="tiny", dataset="cifar")
    before = supernet.active
    with pytest.raises(InputError, match=r"stage2\.depth: got 7; allowed 1 or 2"):
        supernet.activate({**space.largest(), "stage2.depth": 7})
    assert supernet.active == before == space.largest()
