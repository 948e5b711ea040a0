"""LR-ASPP: dilations, the map it answers on, the paper's variants, its decisions, weights of a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.segmentation.lraspp import _lraspp_mobilenetv3

from compress.core.errors import InputError
from evaluators.cost import count_macs, count_params
from evaluators.tasks.segmentation import SegmentationConfig
from spaces.lraspp import LRASPPSpace
from spaces.lraspp.network import LRASPP
from spaces.lraspp.rows import dilated, halved_tail
from spaces.mobilenet.network import MobileNet
from spaces.mobilenet.tables import mobilenet_v2, mobilenet_v3_small
from spaces.registry import create, open_preset
from spaces.space import task_of
from spaces.zoo import ModelConfig, build_model


def built(preset: str, classes: int = 5, side: int = 64) -> LRASPP:
    space, arch = open_preset("lraspp", preset)
    assert arch is not None
    network = space.build(arch, SegmentationConfig().bind(classes, (3, side, side)))
    assert isinstance(network, LRASPP)
    return network.eval()


def test_dilation_stops_the_halving_at_the_output_stride() -> None:
    rows = [row for stage in dilated(mobilenet_v2()).blocks for row in stage]
    assert 2 * torch.tensor([row.stride for row in rows]).prod() == 16
    assert [row.dilation for row in rows] == [1] * 13 + [2] * 4
    assert [row.dilation for stage in dilated(mobilenet_v2(), 8).blocks for row in stage] == [1] * 6 + [2] * 7 + [4] * 4


def test_half_of_the_tail_is_the_last_stage() -> None:
    before, after = mobilenet_v3_small(), halved_tail(mobilenet_v3_small())
    assert after.blocks[:-1] == before.blocks[:-1]
    assert [(row.hidden, row.out, row.se) for row in after.blocks[-1]] == [(288, 48, 72), (288, 48, 72), (288, 48, 72)]
    assert after.last_conv == 288


def test_it_answers_at_the_size_of_any_image() -> None:
    network = built("small")
    high, low = network.tapped(torch.randn(2, 3, 65, 97), network.low)
    assert (high.shape[-2:], low.shape[-2:]) == ((5, 7), (9, 13))
    assert network(torch.randn(2, 3, 65, 97)).shape == (2, 5, 65, 97)


@pytest.mark.parametrize(
    ("preset", "builder"), [("large-rf2", "mobilenet_v3_large"), ("small-rf2", "mobilenet_v3_small")]
)
def test_the_half_tail_is_torchvisions_reduced_tail(preset: str, builder: str) -> None:
    # Howard et al. 2019, table 7: 1.51 M and 0.47 M for 19 classes, which neither this nor torchvision comes down to
    space, arch = open_preset("lraspp", preset)
    assert arch is not None
    backbone = torchvision.models.get_model(builder, weights=None, dilated=True, reduced_tail=True)
    theirs = _lraspp_mobilenetv3(backbone, 19)
    images = torch.empty(1, 3, 64, 64)
    expected = {"params": count_params(theirs)[0], "macs": count_macs(theirs.eval(), images)}
    assert space.cost(arch, space.task(19, img_size=64)) == expected


def test_backbone_and_head_are_decided_together() -> None:
    space = create("lraspp", {"features": [16, 8]})
    assert isinstance(space, LRASPPSpace)
    assert [each.name for each in space.decisions[-1:]] == ["head.features"]
    assert space.count() == 2 * space.backbone.count()
    with pytest.raises(InputError, match=r"networks of the space lraspp are for segmentation; got classification"):
        space.build(space.largest(), task_of(5, 3, 32))
    with pytest.raises(InputError, match="needs blocks that hand on a map of stride 8; these reach 4"):
        create("lraspp", {"backbone": {"strides": [1, 1, 1, 2, 2, 1, 1]}})


def test_it_starts_from_the_weights_of_a_classifier(tmp_path: Path) -> None:
    classifier = MobileNet(mobilenet_v3_small(), task_of(10, 3, 64))
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    kwargs = {"preset": "small"}
    config = ModelConfig(
        source="space", name="lraspp", kwargs=kwargs, checkpoint=str(tmp_path / "classifier.safetensors")
    )
    found = build_model(config, SegmentationConfig().bind(5, (3, 64, 64)))
    report = found.load_report
    assert report is not None and all(name.startswith("head.") for name in report.missing)
    images, network = torch.randn(1, 3, 64, 64), found.module
    assert isinstance(network, LRASPP)
    assert torch.equal(network.tapped(images, network.low)[1], classifier.eval().tapped(images, network.low)[1])
