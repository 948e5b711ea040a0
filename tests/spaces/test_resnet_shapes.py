from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.testing.spaces import enliven
from spaces.architecture import Architecture
from spaces.registry import create
from spaces.resnet_shapes import ResNetShapesSpace
from spaces.resnet_shapes.interpolation import widened
from spaces.resnet_shapes.shape import depth_choices, width_choices
from spaces.resnet_shapes.supernet import ResNetShapesSupernet, SharedBlock, SharedConv

KINDS = [(14, "basic"), (32, "basic"), (20, "bottleneck")]


def opened(depth: int, block: str = "basic") -> ResNetShapesSpace:
    found = create("resnet_shapes", {"depth": depth, "block": block})
    assert isinstance(found, ResNetShapesSpace)
    return found


@pytest.fixture
def double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_choices_are_the_published_ones() -> None:
    assert width_choices(16) == (4, 6, 8, 9, 11, 12, 14, 16)
    assert width_choices(32) == (9, 12, 16, 19, 22, 25, 28, 32)
    assert width_choices(64) == (19, 25, 32, 38, 44, 51, 57, 64)
    assert width_choices(256) == (76, 102, 128, 153, 179, 204, 230, 256)
    assert {n: len(depth_choices(n)) for n in (3, 5, 9, 18)} == {3: 3, 5: 3, 9: 5, 18: 10}
    assert depth_choices(3) == (1, 2, 3) and depth_choices(18) == (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)


def test_resnet56_has_55_widths_and_3_depths() -> None:
    space = opened(56)
    rows = [decision.choices for decision in space.decisions]
    assert sorted(map(len, rows)) == [5] * 3 + [8] * 55
    stage = sum(8 ** (2 * depth) for depth in (1, 3, 5, 7, 9))
    assert space.count() == 8 * stage**3


@pytest.mark.parametrize(("depth", "block"), [(57, "basic"), (164, "basic"), (2, "basic"), (56, "wide")])
def test_other_depths_and_blocks_are_refused(depth: int, block: str) -> None:
    assert opened(164, "bottleneck").blocks == 18
    if (depth, block) == (164, "basic"):
        assert opened(depth, block).blocks == 27
        return
    with pytest.raises(InputError, match=r"option block: |depth is 6n \+ 2 with basic blocks, such as 14; got \d+"):
        opened(depth, block)


def test_codes_are_text_or_the_two_published_lists() -> None:
    space = opened(14)
    arch = space.parse("16/9-16,11-16/32-32/64-19")
    assert space.shape(arch).stages == (((9, 16), (11, 16)), ((32, 32),), ((64, 19),))
    assert space.parse([[2, 1, 1], [3, 16, 9, 16, 11, 16, 32, 32, 1, 1, 64, 19, 1, 1]]) == arch
    assert space.to_code(arch) == "16/9-16,11-16/32-32/64-19"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("16/9-16/32-32", "a code has the stem's width and the three stages"),
        ("16/9-x/32-32/64-64", "a code has the stem's width and the three stages"),
        ("16/9-16-9/32-32/64-64", "a block has 2 convolutions; got '9-16-9'"),
        ("16/9-15/32-32/64-64", r"stage1.block1.conv2: got 15; allowed 4, 6"),
        ([[2, 1, 1], [3, 16]], "3 depths and 14 widths, the image's channels first; got 3 and 2"),
        ([[True, 1, 1], [3, 16]], "a code has the stem's width"),
        (7, "a code has the stem's width"),
    ],
)
def test_what_is_no_code_is_refused(code: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        opened(14).parse(code)


def test_images_that_cannot_be_halved_twice_are_refused() -> None:
    space = opened(14)
    for make in (space.build, space.cost):
        with pytest.raises(InputError, match="the image side must be a multiple of 4; got 30"):
            make(space.largest(), space.task(img_size=30))
    with pytest.raises(InputError, match="the image side must be a multiple of 4; got 30"):
        space.supernet(space.task(img_size=30))


def test_interpolation_is_adaptive_average_pooling_along_the_channels(double: None) -> None:
    for narrow, wide in ((4, 6), (4, 16), (9, 32), (19, 25), (57, 64), (76, 256), (8, 8)):
        x = torch.randn(2, narrow, 3, 5)
        pooled = F.adaptive_avg_pool3d(x.unsqueeze(1), (wide, 3, 5)).squeeze(1)
        torch.testing.assert_close(widened(x, wide), pooled, rtol=0, atol=1e-15)
    x = torch.randn(1, 4, 2, 2)
    means = [x[:, bins].mean(1) for bins in ([0], [0, 1], [1], [2], [2, 3], [3])]
    torch.testing.assert_close(widened(x, 6), torch.stack(means, 1), rtol=0, atol=1e-15)
    assert widened(x, 4) is x
    constant = torch.full((1, 9, 2, 2), 1.7)
    torch.testing.assert_close(widened(constant, 32), torch.full((1, 32, 2, 2), 1.7), rtol=0, atol=1e-15)


def drawn_weights(net: ResNetShapesSupernet, kept: int, seed: int = 0) -> dict[str, Tensor]:
    """Weights that add up to 1: of widths, `kept` are not 0; of depths, all."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, choices in net.mixtures().items():
        weights = torch.rand(len(choices), generator=generator) + 0.1
        if not name.endswith("depth"):
            weights[torch.randperm(len(choices), generator=generator)[kept:]] = 0
        found[name] = (weights / weights.sum()).requires_grad_()
    return found


@pytest.mark.parametrize(("depth", "block"), KINDS)
def test_a_mixture_is_the_published_forward_pass(depth: int, block: str, double: None) -> None:
    """Against the rules written down one by one: whole convolutions of padded inputs, pooled in three dimensions."""
    space = opened(depth, block)
    net = space.supernet(space.task(img_size=8))
    assert isinstance(net, ResNetShapesSupernet)
    enliven(net)
    for kept in (2, 8):
        weights, images = drawn_weights(net, kept), torch.randn(3, 3, 8, 8)
        net.train().mix(weights)
        found = net(images)
        with torch.no_grad():
            torch.testing.assert_close(found, literal(net, images, weights), rtol=1e-9, atol=1e-12)


def literal(net: ResNetShapesSupernet, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    choices, convs = net.mixtures(), net.space.convs

    def unit(conv: SharedConv, x: Tensor, name: str) -> Tensor:
        x = torch.cat([x, x.new_zeros(len(x), conv.conv.in_channels - x.shape[1], *x.shape[2:])], 1)
        y = conv.conv(x)
        kept = [(int(c), w) for c, w in zip(choices[name], weights[name], strict=True) if w != 0]
        widest = max(c for c, _ in kept)
        norms = {c: nn.functional.batch_norm(y[:, :c], None, None, n.weight, n.bias, True) for c, n in normed(conv)}
        return torch.stack([w * interpolated(norms[c], widest) for c, w in kept]).sum(0)

    def normed(conv: SharedConv) -> list[tuple[int, nn.BatchNorm2d]]:
        return [(int(c), n) for c, n in conv.norms.items() if isinstance(n, nn.BatchNorm2d)]

    def interpolated(x: Tensor, channels: int) -> Tensor:
        return F.adaptive_avg_pool3d(x.unsqueeze(1), (channels, *x.shape[2:])).squeeze(1)

    x = unit(net.stem, images, "stem").relu()
    for stage, blocks in enumerate(net.stages, 1):
        ends = []
        for number, block in enumerate(blocks, 1):  # type: ignore[arg-type]
            assert isinstance(block, SharedBlock)
            names = [f"stage{stage}.block{number}.conv{conv}" for conv in range(1, convs + 1)]
            out = x
            for part, name in zip(block.units, names, strict=True):
                assert isinstance(part, SharedConv)
                out = unit(part, out, name)
                out = out if name == names[-1] else out.relu()
            if number == 1 and (stage > 1 or net.space.config.block == "bottleneck"):
                x = unit(block.shortcut, F.avg_pool2d(x, 2) if stage > 1 else x, names[-1])
            common = min(x.shape[1], out.shape[1])
            rest = (x if x.shape[1] > common else out)[:, common:]
            x = torch.cat([x[:, :common] + out[:, :common], rest], 1).relu()
            if number in choices[f"stage{stage}.depth"]:
                ends.append(x)
        widest = max(end.shape[1] for end in ends)
        shares = weights[f"stage{stage}.depth"]
        x = torch.stack([w * interpolated(end, widest) for w, end in zip(shares, ends, strict=True)]).sum(0)
    return x.mean((2, 3)) @ net.classifier.weight[:, : x.shape[1]].T + net.classifier.bias


def test_candidates_without_weight_are_not_computed(double: None) -> None:
    space = opened(32)
    net = space.supernet(space.task(img_size=8))
    weights = drawn_weights(net, 2) | {"stage2.depth": torch.tensor([0.0, 1.0, 0.0], requires_grad=True)}
    net.mix(weights)
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    for name, weight in weights.items():
        if name.endswith("depth") or name.startswith(("stage2.block4", "stage2.block5")):
            continue
        assert weight.grad is not None and weight.grad.ne(0).sum() == 2 and bool(weight.grad[weight == 0].eq(0).all())
    norms = {name.split(".norms.")[1].split(".")[0] for name in trained if name.startswith("stages.0.1.units.0.norms")}
    kept = weights["stage1.block2.conv1"].ne(0).nonzero().flatten().tolist()
    assert norms == {str(width_choices(16)[index]) for index in kept}
    assert not any(name.startswith(("stages.1.3", "stages.1.4")) for name in trained)


def one_hot(net: ResNetShapesSupernet, arch: Architecture) -> dict[str, Tensor]:
    """Probabilities of one architecture; what it does not decide is drawn."""
    generator = random.Random(0)
    return {
        name: torch.tensor([float(choice == arch.get(name, generator.choice(choices))) for choice in choices])
        for name, choices in net.mixtures().items()
    }


@pytest.mark.parametrize(("depth", "block"), [*KINDS, (56, "basic")])
def test_expected_macs_of_one_shape_are_its_own_without_extra_shortcuts(depth: int, block: str, double: None) -> None:
    space = opened(depth, block)
    net = space.supernet()
    assert isinstance(net, ResNetShapesSupernet)
    generator = random.Random(0)
    for arch in [space.largest(), *(space.sample(generator) for _ in range(4))]:
        extra, size = 0, 32
        for part in space.shape(arch).blocks():
            size //= part.stride
            extra += part.padded and part.inputs != part.outputs and part.inputs * part.outputs * size**2
        assert net.expected_macs(one_hot(net, arch)).item() == space.cost(arch)["macs"] - extra
        assert extra or arch == space.largest()


def test_expected_macs_are_the_mean_over_drawn_shapes(double: None) -> None:
    space = opened(20)
    net = space.supernet()
    probabilities = {name: weights.detach() for name, weights in drawn_weights(net, 8).items()}
    generator = torch.Generator().manual_seed(1)
    picks = {name: torch.multinomial(each, 400, True, generator=generator) for name, each in probabilities.items()}
    choices = net.mixtures()
    found = []
    for number in range(400):
        arch = {name: choices[name][int(picks[name][number])] for name in choices}
        found.append(net.expected_macs(one_hot(net, space.check(arch, drop_untaken=True))))
    drawn = torch.stack(found)
    expected, spread = net.expected_macs(probabilities), drawn.std() / len(found) ** 0.5
    assert abs(drawn.mean() - expected) < 3 * spread


def test_networks_are_plain_operators_in_onnx(tmp_path: Path) -> None:
    import onnx

    from compress.export.exporters import ExportConfig, export

    for depth, block in ((14, "basic"), (20, "bottleneck")):
        space = opened(depth, block)
        network = space.build(space.sample(random.Random(1)), space.task(img_size=8))
        enliven(network)  # norms that are all the same are written once, and named again by Identity
        file = tmp_path / f"{block}.onnx"
        export(network, torch.randn(2, 3, 8, 8), file, ExportConfig(exporter="torchscript"))
        operators = {node.op_type for node in onnx.load(str(file)).graph.node}
        plain = {"Conv", "BatchNormalization", "Relu", "Add", "AveragePool", "GlobalAveragePool", "Flatten", "Gemm"}
        assert operators <= plain and {"Conv", "Relu", "Add", "AveragePool", "Gemm"} <= operators
