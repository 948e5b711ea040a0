from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.testing.spaces import enliven
from evaluators.cost import count_macs, count_params
from spaces.architecture import Architecture
from spaces.nats_size import NATSSizeSpace
from spaces.registry import create, open_preset, presets

SIZE = 16
CHANNELS = (8, 16, 24, 32, 40, 48, 56, 64)


@pytest.fixture(scope="module")
def space() -> NATSSizeSpace:
    found = create("nats_size")
    assert isinstance(found, NATSSizeSpace)
    return found


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def samples(space: NATSSizeSpace, count: int) -> list[Architecture]:
    generator = random.Random(0)
    return [space.sample(generator) for _ in range(count)]


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE)


def test_five_positions_with_eight_numbers_of_channels(space: NATSSizeSpace) -> None:
    assert [decision.choices for decision in space.decisions] == [CHANNELS] * 5
    assert space.count() == 32_768


def test_codes_go_both_ways(space: NATSSizeSpace) -> None:
    arch = space.parse("64:40:48:64:56")
    assert space.channels(arch) == (64, 40, 48, 64, 56)
    assert space.to_code(arch) == "64:40:48:64:56"
    assert space.parse([64, 40, 48, 64, 56]) == arch
    assert all(space.parse(space.to_code(arch)) == arch for arch in samples(space, 50))


def test_enumeration_is_in_the_order_of_the_benchmark(space: NATSSizeSpace) -> None:
    listed = [space.to_code(Architecture(space.tree.unrank(rank))) for rank in (0, 12, 32_767)]
    assert listed == ["8:8:8:8:8", "8:8:8:16:40", "64:64:64:64:64"]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("64:40:48:64", "five numbers of channels"),
        (64, "five numbers of channels"),
        ("64:40:12:64:56", "block3: got 12; allowed 8, 16, 24, 32, 40, 48, 56 or 64"),
        ("64:wide:48:64:56", "block2: got 'wide'; allowed 8, 16"),
    ],
)
def test_wrong_codes_are_refused_by_position(space: NATSSizeSpace, code: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        space.parse(code)
    assert len(error.value.problems) == 1


def test_images_that_cannot_be_halved_twice_are_refused(space: NATSSizeSpace) -> None:
    arch = space.parse("8:8:8:8:8")
    for call in (space.build, space.cost):
        with pytest.raises(InputError, match="multiple of 4; got 30"):
            call(arch, space.task(img_size=30))
    with pytest.raises(InputError, match="multiple of 4; got 30"):
        space.supernet(space.task(img_size=30))


def test_presets_open() -> None:
    for name in presets("nats_size"):
        space, arch = open_preset("nats_size", name)
        assert arch is not None and space.to_code(arch) == presets("nats_size")[name].code


def test_predicted_cost_is_that_of_the_built_network(space: NATSSizeSpace) -> None:
    for arch in samples(space, 50):
        built = space.build(arch, space.task(7, 3, SIZE))
        counted = {"params": count_params(built)[0], "macs": count_macs(built, images(1))}
        assert space.cost(arch, space.task(7, 3, SIZE)) == counted


def test_rows_show_the_two_halvings(space: NATSSizeSpace) -> None:
    rows = space.layers(space.parse("64:40:48:64:56")) or []
    assert [row.size for row in rows] == [32, 32, 16, 16, 8, 8, 1]
    assert [row.out_channels for row in rows] == [64, 64, 40, 48, 64, 56, 10]
    assert [row.stride for row in rows] == [1, 1, 2, 1, 2, 1, 1]


def test_a_cell_is_the_published_graph(space: NATSSizeSpace) -> None:
    cell = space.build(space.parse("8:8:16:8:8")).eval().blocks[2]
    x = torch.randn(2, 8, 4, 4)
    first = cell.conv01(x)
    second = cell.conv02(x) + cell.conv12(first)
    assert torch.allclose(cell(x), cell.skip03(x) + cell.conv13(first) + cell.conv23(second))
    negative = cell.skip03(-x.abs())
    assert negative.abs().sum() > 0  # the skip between two widths has no ReLU before its convolution
    assert torch.equal(cell.conv01(-x.abs()), cell.conv01(torch.zeros_like(x)))


def test_a_skip_that_keeps_the_width_has_no_weights(space: NATSSizeSpace) -> None:
    same, other = (space.build(space.parse(code)) for code in ("8:8:8:8:8", "8:8:16:8:8"))
    assert isinstance(same.blocks[2].skip03, nn.Identity)
    assert other.blocks[2].skip03.conv.weight.shape == (16, 8, 1, 1)


def test_networks_export_to_onnx(space: NATSSizeSpace, tmp_path: Path) -> None:
    for number, arch in enumerate(samples(space, 3)):
        built, x = space.build(arch).eval(), images(2)
        file = tmp_path / f"{number}.onnx"
        torch.onnx.export(built, (x,), file, input_names=["input"], dynamo=False)
        (found,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
            None, {"input": x.numpy()}
        )
        assert np.abs(found - built(x).detach().numpy()).max() <= 1e-4


def test_the_active_supernet_computes_what_the_extracted_network_computes(space: NATSSizeSpace) -> None:
    net = space.supernet(space.task(num_outputs=7))
    enliven(net)
    x = images()
    with torch.no_grad():
        for arch in samples(space, 50):
            net.activate(arch)
            for training in (False, True):
                alone = net.train(training).extract()
                expected = alone(x)
                assert (net(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
            inherited = net.inherited(arch)
            for key, value in alone.state_dict().items():
                assert torch.allclose(inherited[key], value, atol=1e-6), key


def test_convolutions_are_shared_and_norms_are_not(space: NATSSizeSpace) -> None:
    net = space.supernet()
    small, large = (net.inherited(space.parse(code)) for code in ("8:8:8:8:8", "8:16:8:8:8"))
    shared = "blocks.1.conv_a.conv.weight"
    assert small[shared].data_ptr() == large[shared].data_ptr()
    own = "blocks.1.conv_a.norm.running_mean"
    assert small[own].data_ptr() != large[own].data_ptr()
    assert torch.equal(small[shared], large[shared][:8])


def test_a_step_trains_the_sampled_widths_only(space: NATSSizeSpace) -> None:
    net = space.supernet()
    net.activate(space.parse("8:8:8:16:40"))
    net(images()).square().sum().backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    norms = {name.rpartition(".widths.")[2].split(".")[0] for name in trained if ".widths." in name}
    assert norms == {"8", "16", "40"}
    assert not any("blocks.2.skip03" in name for name in trained)  # 8 -> 8 is the identity
    gradient = net.network.blocks[3].conv_a.conv.weight.grad
    assert gradient[:16, :8].abs().sum() > 0
    assert gradient[16:].abs().sum() == 0 and gradient[:, 8:].abs().sum() == 0


def test_architectures_survive_json(space: NATSSizeSpace) -> None:
    for arch in samples(space, 10):
        assert space.parse(json.loads(json.dumps(space.to_dict(arch)))) == arch
