from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from compress.core.errors import InputError
from compress.export.exporters import ExportConfig, export
from evaluators.cost import count_macs, count_params
from spaces.architecture import Architecture
from spaces.pooling import PoolingSpace
from spaces.registry import create, open_preset, presets
from spaces.space import Space

FAMILIES = {
    "resnet20": ({}, 12, 32),
    "resnet20 of batch statistics": ({"norm": "batch_statistics"}, 3, 32),
    "regnet of batch statistics": ({"backbone": "timm:regnetx_002", "norm": "batch_statistics"}, 2, 64),
    "resnet20 by stride": ({"how": "stride"}, 3, 30),
    "timm resnet": ({"backbone": "timm:resnet18"}, 6, 32),
    "timm resnet by pooling": ({"backbone": "timm:resnet18", "how": "max_pool"}, 2, 48),
    "convnext": ({"backbone": "timm:convnext_atto"}, 6, 32),
    "convnext by pooling": ({"backbone": "timm:convnext_atto", "how": "max_pool"}, 2, 36),
    "mobilenetv2": ({"backbone": "timm:mobilenetv2_050"}, 4, 40),
    "regnet": ({"backbone": "timm:regnetx_002"}, 2, 64),
    "torchvision": ({"backbone": "torchvision:mobilenet_v3_small"}, 2, 64),
}
"""Options, random architectures, image size."""


@pytest.fixture(scope="module")
def space() -> PoolingSpace:
    return pooling()


def pooling(**options: Any) -> PoolingSpace:
    space = create("pooling", options)
    assert isinstance(space, PoolingSpace)
    return space


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give normalisation layers parameters and statistics that leave no mistake invisible."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "bias" not in name else -0.5))
    return network


def error_of(space: Space, code: Any) -> str:
    with pytest.raises(InputError) as caught:
        space.parse(code)
    return str(caught.value)


# Codes and decisions.


def test_segment_lengths_and_binary_codes_name_the_same_placements(space: PoolingSpace) -> None:
    for arch in space:
        assert space.parse(space.to_code(arch)) == space.parse(space.to_binary(arch)) == arch
    assert space.parse([4, 3, 3]) == space.parse((4, 3, 3)) == space.parse("0000100100")


def test_decisions_that_leave_no_choice_are_not_taken(space: PoolingSpace) -> None:
    assert dict(space.parse([1, 1, 8])) == {"unit1.halve": True, "unit2.halve": True}
    late = space.parse([8, 1, 1])
    assert list(late) == [f"unit{unit}.halve" for unit in range(1, 8)]
    assert not any(late.values())
    assert space.positions(late) == (8, 9)


def test_any_choices_of_a_full_product_are_one_placement(space: PoolingSpace) -> None:
    generator = random.Random(0)
    for _ in range(300):
        choices = {name: generator.choice(each.choices) for name, each in space.distributions().items()}
        assert len(space.positions(space.check(choices, drop_untaken=True))) == 2


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("1000100000", "unit0.halve: got 1 at position 0 of '1000100000'; the map can be halved at units 1 to 9 only"),
        ([0, 5, 5], "unit0.halve: got a first segment of 0 units in [0, 5, 5]; the map can be halved at units 1 to 9"),
        ({"unit0.halve": True}, "unit0.halve: nothing can halve the map before the first unit; allowed unit1.halve to"),
        ([4, 0, 6], "segment 2: got 0 units in [4, 0, 6]; allowed 1 or more"),
        ([4, 3, 4], "segment lengths: got [4, 3, 4], 11 units; allowed lengths that sum to 10"),
        ([4, 6], "segment lengths: got 2 of them, [4, 6]; allowed exactly 3"),
        ("0000100000", "binary code: got '0000100000' with 1 ones; allowed exactly 2"),
        ("000010010", "binary code: got '000010010'; allowed 10 digits 0 or 1"),
        ("0000100102", "binary code: got '0000100102'; allowed 10 digits 0 or 1"),
        ([4.0, 3, 3], "code: got [4.0, 3, 3]; allowed a list of 3 segment lengths that sum to 10, or a string"),
        ({"unit1.halve": 1}, "unit1.halve: got 1; allowed True or False"),
        (
            {"unit1.halve": True, "unit2.halve": True, "unit3.halve": True},
            "unit3.halve: got True; this decision is taken only while",
        ),
    ],
)
def test_wrong_placements_are_refused_in_one_sentence(space: PoolingSpace, code: Any, sentence: str) -> None:
    assert sentence in error_of(space, code)


# Drawing and moving.


def test_sampling_is_uniform_over_the_36_placements(space: PoolingSpace) -> None:
    generator = random.Random(3)
    drawn = Counter(space.sample(generator) for _ in range(7200))
    assert len(drawn) == 36
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_a_hundred_thousand_mutations_stay_legal(space: PoolingSpace) -> None:
    generator = random.Random(0)
    legal, arch, seen = {arch: set(space.positions(arch)) for arch in space}, space.parse([4, 3, 3]), set()
    for _ in range(100_000):
        mutated = space.mutate(arch, generator)
        assert mutated != arch
        assert len(legal[mutated] & legal[arch]) == 1
        arch = mutated
        seen.add(arch)
    assert seen == set(legal)


def test_neighbours_have_one_halving_elsewhere(space: PoolingSpace) -> None:
    arch = space.parse([4, 3, 3])
    found = list(space.neighbours(arch))
    assert len(found) == len(set(found)) == 2 * 7
    assert all(space.check(dict(each)) == each != arch for each in found)
    assert space.mutate(arch, random.Random(0)) in found


def test_positions_outside_the_chain_are_refused(space: PoolingSpace) -> None:
    assert space.at((7, 4)) == space.parse([4, 3, 3])
    for positions in ((0, 4), (4,), (4, 7, 8)):
        with pytest.raises(InputError):
            space.at(positions)


def test_a_chain_full_of_halvings_has_one_placement() -> None:
    space = pooling(halvings=9)
    (only,) = space
    assert space.count() == 1 and not only
    assert space.mutate(only, random.Random(0)) == only and not list(space.neighbours(only))
    assert space.to_code(only) == [1] * 10


def test_long_chains_are_counted_and_drawn_quickly() -> None:
    space = pooling(backbone="timm:resnet50", halvings=7)
    assert (space.count(), space.task().img_size) == (6435, 512)
    drawn = space.sample(random.Random(1))
    assert space.tree.unrank(space.tree.rank(drawn)) == dict(drawn)


# Networks.


@pytest.mark.parametrize("family", FAMILIES)
def test_random_placements_cost_what_is_predicted_and_inherit_from_the_supernet(family: str) -> None:
    options, draws, size = FAMILIES[family]
    space = pooling(**options)
    torch.manual_seed(0)
    supernet = space.supernet(space.task(num_outputs=5, img_size=size))
    lively(supernet)
    images = torch.randn(2, 3, size, size)
    generator = random.Random(11)
    drawn = [space.sample(generator) for _ in range(draws)]
    assert len(set(drawn)) > draws / 2
    for arch in drawn:
        supernet.eval().activate(arch)
        alone = supernet.extract()
        check_cost(space, arch, alone, size)
        for mode in (False, True):
            with torch.no_grad():
                torch.manual_seed(1)  # for dropout and stochastic depth
                expected = supernet.train(mode)(images)
                torch.manual_seed(1)
                torch.testing.assert_close(alone.train(mode)(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.state_dict(), dict(supernet.inherited(arch)))  # statistics moved alike


def check_cost(space: PoolingSpace, arch: Architecture, network: nn.Module, size: int) -> None:
    counted = {"params": count_params(network)[0], "macs": count_macs(network.eval(), torch.randn(2, 3, size, size))}
    assert space.cost(arch, space.task(num_outputs=5, img_size=size)) == counted
    rows = space.layers(arch, space.task(num_outputs=5, img_size=size))
    assert rows is not None
    assert [row.name for row in rows if row.name in {f"unit{unit}" for unit in space.positions(arch)}] == [
        row.name for row in rows if row.stride == 2 and row.name != "unit0"
    ]


QUICK = ("timm:resnet26d", "timm:convnext_atto", "timm:mobilenetv3_small_050", "torchvision:regnet_x_400mf")
SLOW = ("timm:resnetv2_50", "timm:seresnext26t_32x4d", "timm:regnety_002", "timm:tf_efficientnetv2_b0",
        "torchvision:resnet18", "torchvision:mobilenet_v2")  # fmt: skip


@pytest.mark.parametrize("backbone", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_halvings_by_stride_where_the_backbone_has_them_are_the_backbone_itself(backbone: str) -> None:
    space = pooling(backbone=backbone)
    assert space.how == "stride"
    torch.manual_seed(0)
    network = space.build(space.at(space.chain.halved), space.task(num_outputs=5)).eval()
    original = space.backbone.create(space.task(5)).eval()
    state = network.state_dict()  # in the same order, under the names of the wrapped units
    original.load_state_dict(dict(zip(original.state_dict(), state.values(), strict=True)))
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(images), original(images), rtol=1e-4, atol=1e-4)


def test_stride_on_an_identity_shortcut_takes_every_second_pixel() -> None:
    space = pooling(how="stride")
    network = space.build(space.parse([2, 3, 5])).eval()
    unit = network.get_submodule("blocks.1")
    x = torch.rand(1, 16, 9, 9)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.zero_()
        torch.testing.assert_close(unit(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize("how", ["max_pool", "stride"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnet50_224"])
def test_residual_networks_cost_by_arithmetic_what_they_cost(backbone: str, how: str) -> None:
    space = pooling(backbone=backbone, how=how)
    generator = random.Random(2)
    for size in (space.task().img_size, 99):
        arch = space.sample(generator)
        with torch.device("meta"):
            network = space.build(arch, space.task(img_size=size))
            counted = {"params": count_params(network)[0], "macs": count_macs(network, torch.empty(1, 3, size, size))}
        assert space.cost(arch, space.task(img_size=size)) == counted


def test_every_placement_of_a_measured_chain_has_all_its_halvings() -> None:
    space = pooling(backbone="timm:convnext_atto")
    assert space.count() == 165
    for arch in space:
        rows = space.layers(arch)
        assert rows is not None
        assert sum(row.stride == 2 for row in rows) == space.halvings == len(space.positions(arch))
        assert rows[-2].size == space.task().img_size // space.chain.reduction // 2**space.halvings


def test_only_the_network_with_batch_statistics_has_no_affine_parameters() -> None:
    arch = pooling().parse([4, 3, 3])
    plain, pure = pooling().build(arch), pooling(norm="batch_statistics").build(arch)
    assert (count_params(plain)[0], count_params(pure)[0]) == (272_474, 270_906)
    assert not any("running" in name for name in pure.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(pure.eval()(images), pure.train()(images))


def test_activation_moves_pools_and_leaves_weights_alone(space: PoolingSpace) -> None:
    supernet = space.supernet()
    before = {name: parameter.data_ptr() for name, parameter in supernet.named_parameters()}
    for arch in space:
        supernet.activate(arch)
    assert before == {name: parameter.data_ptr() for name, parameter in supernet.named_parameters()}
    with pytest.raises(InputError):
        supernet.activate({"unit1.halve": True, "unit2.halve": "no"})
    assert supernet.active == space.parse([8, 1, 1])


@pytest.mark.parametrize(
    ("options", "exporter"),
    [
        ({}, "torchscript"),
        ({"how": "stride"}, "torchscript"),
        ({"norm": "batch_statistics"}, "torchscript"),
        ({"backbone": "timm:convnext_atto"}, "torchscript"),
        pytest.param({"norm": "batch_statistics"}, "dynamo", marks=pytest.mark.slow),
        pytest.param({"backbone": "timm:convnext_atto"}, "dynamo", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value.values()) or "resnet20",
)
def test_networks_export_to_onnx_with_both_exporters(options: dict[str, str], exporter: Any, tmp_path: Path) -> None:
    space = pooling(**options)
    torch.manual_seed(0)
    network = lively(space.build(space.sample(random.Random(5)), space.task(num_outputs=5, img_size=48))).eval()
    result = export(network, torch.randn(2, 3, 48, 48), tmp_path / "model.onnx", ExportConfig(exporter=exporter))
    assert result.parity_max_rel <= 1e-4


# Backbones.


def test_units_override_names_the_chain() -> None:
    stages = pooling(backbone="timm:resnet18", units=["layer*"])
    assert stages.chain.units == ("layer1", "layer2", "layer3", "layer4") and stages.count() == 1
    part = pooling(backbone="timm:resnet18", units=["layer2.*", "layer3.*"])
    assert part.chain.units == ("layer2.0", "layer2.1", "layer3.0", "layer3.1")
    assert (part.halvings, part.count()) == (1, 3)
    layers = pooling(backbone="torchvision:vgg11", units=["features.*"], how="max_pool")
    assert layers.halvings == 5 and len(layers.chain.units) == 21
    check_cost(
        layers, layers.at((1, 2, 3, 4, 5)), layers.build(layers.at((1, 2, 3, 4, 5)), layers.task(5, img_size=64)), 64
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "resnet21"}, ("got 'resnet21'", "timm:NAME", "did you mean 'resnet20'")),
        ({"backbone": "timm:resnet81"}, ("timm has no model 'resnet81'", "did you mean")),
        ({"backbone": "timm:vit_tiny_patch16_224"}, ("no chain of blocks was found",)),
        ({"backbone": "timm:swin_tiny_patch4_window7_224"}, ("layers.1.blocks.0 halves the map, but in no conv",)),
        ({"backbone": "timm:resnetblur50"}, ("layer2.0.aa halves the map as a BlurPool2d",)),
        ({"backbone": "timm:cspresnet50"}, ("fails with the map halved at stages.0.blocks.1",)),
        ({"backbone": "timm:resnet18", "units": ["layer9.*"]}, ("'layer9.*' matches no module", "layer1")),
        ({"backbone": "timm:resnet18", "units": ["layer1"]}, ("name 1 module; at least 2",)),
        ({"backbone": "timm:resnet18", "units": ["layer1.*", "fc"]}, ("fc does not run once, from one map",)),
        ({"backbone": "timm:resnet18", "halvings": 8}, ("halvings: got 8; allowed 1 to 7",)),
        ({"backbone": "timm:resnet18", "units": ["layer1.*"]}, ("halves the map nowhere in its 2 units",)),
        ({"backbone": "timm:convnext_atto", "norm": "batch_statistics"}, ("without batch norm; allowed 'batch'",)),
        ({"backbone": "torchvision:convnext_tiny", "how": "stride"}, ("features.1.1 fails with the map halved at",)),
        ({"how": "average"}, ("option how", 'got "average"; allowed max_pool, stride')),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_backbones_that_cannot_be_served_are_refused_in_one_sentence(options: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        pooling(**options)
    (sentence,) = caught.value.problems
    assert all(word in sentence for word in words), sentence


def test_images_too_small_for_all_halvings_are_refused() -> None:
    space = pooling(backbone="timm:resnet10t")
    arch = space.at(space.chain.halved)
    for use in (space.build, space.cost):
        with pytest.raises(InputError, match="img_size: got 16 pixels; allowed 32 or more, for 3 halvings"):
            use(arch, space.task(img_size=16))
    with pytest.raises(InputError, match="torchvision's models take 3 channels"):
        tv = pooling(backbone="torchvision:resnet18")
        tv.build(next(iter(tv)), tv.task(in_chans=1))


@pytest.mark.parametrize("name", presets("pooling"))
def test_presets_open(name: str) -> None:
    space, arch = open_preset("pooling", name)
    assert arch is None or space.to_code(arch) == presets("pooling")[name].code
    assert isinstance(space, PoolingSpace)
    assert arch is None or len(space.positions(arch)) == space.halvings
