"""NASNet-A against the paper's figures (Zoph et al. 2018, tables 1 to 3) and against timm's network."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluators.cost import count_macs, count_params
from spaces.architecture import Architecture
from spaces.registry import create, open_preset
from spaces.space import Space


def released(preset: str, **options: Any) -> tuple[Space, Architecture]:
    space, arch = open_preset("nasnet", preset, options)
    assert arch is not None
    return space, arch


@pytest.mark.parametrize(
    ("preset", "params", "macs"),
    [  # the paper: 3.3 M (CIFAR, 6 @ 768); 5.3 M and 564 M (4 @ 1056); 88.9 M and 23.8 B (6 @ 4032, 331 pixels)
        ("nasnet-a-cifar", 3_346_538, 544_333_312),
        ("nasnet-a-mobile", 5_289_978, 563_638_816),
        ("nasnet-a-large", 88_753_150, 23_783_414_658),
        ("proxy", 1_294_698, 232_185_344),
    ],
)
def test_released_networks_cost_what_the_paper_says(preset: str, params: int, macs: int) -> None:
    space, arch = released(preset)
    task = space.default_task
    with torch.device("meta"):
        network = space.build(arch)
        images = torch.empty(1, 3, task.img_size, task.img_size)
        assert (count_params(network)[0], count_macs(network, images)) == (params, macs)
    assert space.cost(arch) == {"params": params, "macs": macs}


def test_running_statistics_explain_what_other_frameworks_count() -> None:
    for preset, elements in (("nasnet-a-mobile", 36_738), ("nasnet-a-large", 196_668)):
        space, arch = released(preset)
        with torch.device("meta"):
            buffers = dict(space.build(arch).named_buffers())
        assert sum(each.numel() for name, each in buffers.items() if "running" in name) == elements
    space, arch = released("nasnet-a-mobile")
    assert space.cost(arch, space.task(num_outputs=1001))["params"] == 5_289_978 + 1057


@pytest.mark.parametrize(
    ("preset", "params", "macs"),
    [("nasnet-a-cifar", 3_076_906, None), ("nasnet-a-mobile", 4_772_516, 518.31e6)],
)
def test_loose_ends_alone_give_smaller_networks(preset: str, params: int, macs: float | None) -> None:
    space, arch = released(preset, concat=None)
    cost = space.cost(arch)
    assert cost["params"] == params
    assert macs is None or cost["macs"] == pytest.approx(macs, abs=5e3)


def test_mobile_cells_have_the_published_shapes_and_parameters() -> None:
    space, arch = released("nasnet-a-mobile")
    rows = space.layers(arch)
    assert rows is not None
    assert [(row.out_channels, row.size) for row in rows[:-1]] == [
        (32, 111), (44, 56), (88, 28), *[(264, 28)] * 4, (352, 14), *[(528, 14)] * 4, (704, 7), *[(1056, 7)] * 4,
    ]  # fmt: skip
    assert [row.params for row in rows] == [
        928, 8534, 13_948, 33_000, 42_680, 50_424, 50_424, 153_648, 147_312, 170_544, 186_032, 186_032, 555_104,
        557_920, 650_848, 712_800, 712_800, 1_057_000,
    ]  # fmt: skip
    space, arch = released("nasnet-a-cifar")
    rows = space.layers(arch)
    assert rows is not None
    assert [(row.out_channels, row.size) for row in rows[:-1]] == [
        (96, 32), *[(192, 32)] * 6, (256, 16), *[(384, 16)] * 6, (512, 8), *[(768, 8)] * 6,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "params"),
    [("nasnet-a-cifar", 1_631_498), ("nasnet-a-mobile", 2_411_240), ("nasnet-a-large", 4_567_784)],
)
def test_auxiliary_heads_have_the_published_parameters(preset: str, params: int) -> None:
    space, arch = released(preset, auxiliary=True)
    plain, _ = released(preset)
    with torch.device("meta"):
        network = space.build(arch)
    head = network.get_submodule("auxiliary_head")
    assert count_params(head)[0] == params
    assert space.cost(arch)["params"] == plain.cost(arch)["params"] + params == count_params(network)[0]


def test_cells_have_the_published_number_of_descriptions() -> None:
    assert create("nasnet").count() == 2_286_906_949_584_691_200**2
    add_only = create("nasnet", {"combines": ["add"]})
    assert add_only.count() == (2_286_906_949_584_691_200 // 2**5) ** 2


CELLS = {"stem1": "cell_stem_0", "stem2": "cell_stem_1", "reduction1": "reduction_cell_0"}
CELLS |= {"reduction2": "reduction_cell_1"}
CELLS |= {f"stage{stage}_cell{n}": f"cell_{6 * (stage - 1) + n - 1}" for stage in (1, 2, 3) for n in range(1, 7)}
RENAMED = (
    (r"^stem\.norm", "conv0.bn"),
    (r"^stem", "conv0"),
    (r"^classifier", "last_linear"),
    (r"^cells\.(\w+)", lambda found: CELLS[found[1]]),
    (r"prepare0\.norm", "conv_1x1.bn"),
    (r"prepare0", "conv_1x1"),
    (r"prepare1\.branch(.)", r"path_\1.conv"),
    (r"blocks\.block(\d)\.op1", r"comb_iter_\1_left"),
    (r"blocks\.block(\d)\.op2", r"comb_iter_\1_right"),
    (r"first\.norm", "bn_sep_1"),
    (r"second\.norm", "bn_sep_2"),
    (r"first", "separable_1"),
    (r"second", "separable_2"),
    (r"(depth|point)wise", r"\1wise_conv2d"),
)


def timm_name(name: str, timm_state: dict[str, Tensor]) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    for kind in ("final_path_bn", "conv_prev_1x1.bn"):  # the repair of the second input is one or the other
        candidate = name.replace("prepare1.norm", kind)
        if candidate in timm_state:
            return candidate
    return name.replace("prepare1", "conv_prev_1x1")


def perturb_norms(network: nn.Module, images: Tensor) -> None:
    """Give every batch norm the statistics of `images`, then random scales, shifts and errors of the statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
        for norm in norms:
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.add_(torch.randn_like(norm.running_mean) * norm.running_var.sqrt() * 0.1)
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2))
    network.eval()


def leave_padding_out(pool: nn.Module) -> None:
    """Make timm's padded average pooling a true average.

    Asked for count_include_pad=False, it pads first and then averages over the padding too, in the four pools of stride
    2. TensorFlow, from which the weights come, does not.
    """
    padded = pool.forward
    pool.forward = lambda x: padded(x) / padded(torch.ones_like(x))


@pytest.mark.slow
def test_large_network_agrees_with_timm() -> None:
    import timm
    from timm.layers.pool2d_same import AvgPool2dSame

    torch.manual_seed(0)
    theirs = timm.create_model("nasnetalarge", num_classes=10)
    pools = [module for module in theirs.modules() if isinstance(module, AvgPool2dSame)]
    assert len(pools) == 4
    for pool in pools:
        leave_padding_out(pool)
    perturb_norms(theirs, torch.randn(4, 3, 97, 97))
    space, arch = released("nasnet-a-large")
    with torch.device("meta"):
        ours = space.build(arch, space.task(num_outputs=10)).eval()
    state = theirs.state_dict()
    names = {name: timm_name(name, state) for name in ours.state_dict()}
    assert sorted(names.values()) == sorted(state)
    ours.load_state_dict({name: state[other] for name, other in names.items()}, assign=True)
    mobile, _ = released("nasnet-a-large", wiring="mobile")
    with torch.device("meta"):
        rewired = mobile.build(arch, mobile.task(num_outputs=10)).eval()
    rewired.load_state_dict(ours.state_dict(), assign=True)
    for size in (97, 131):  # even and odd maps on the way down
        with torch.no_grad():
            images = torch.randn(2, 3, size, size)
            expected, got, other = theirs(images), ours(images), rewired(images)
        assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()  # the image matters
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (other - expected).abs().max() > 1e-2 * expected.abs().max()  # what only a wiring test can tell
