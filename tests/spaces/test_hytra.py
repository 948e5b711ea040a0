"""The HyTra space: encodings, options, operations, stand-alone networks."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.meta import without_storage
from compress.export.exporters import ExportConfig, export
from evaluators.cost import count_macs, count_params
from spaces.hytra import HyTra
from spaces.hytra.operations import Attention, Residual, Style
from spaces.registry import create, open_preset

SEARCH = Style(pooled=False, se=False, head_dim=4)


def hytra(preset: str | None = None, **options: Any) -> HyTra:
    """Return the space as a preset sets it, with more options."""
    space = create("hytra", {**(HyTra.presets[preset].options if preset else {}), **options})
    assert isinstance(space, HyTra)
    return space


# Encodings


def test_decisions_are_exactly_the_paths_that_the_rules_allow() -> None:
    space = hytra(layers=5, blocks=1)
    scale = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 3}
    legal = {
        path for path in product(range(6), repeat=5) if all(scale[a] - scale[b] in (0, 1) for a, b in pairwise(path))
    }
    assert {tuple(space.codes(arch)) for arch in space} == legal
    assert space.count() == len(legal)


def test_a_path_reads_back_from_every_form() -> None:
    space = hytra()
    generator = random.Random(0)
    for _ in range(200):
        arch = space.sample(generator)
        digits = space.to_code(arch)
        assert space.parse(digits) == space.parse(digits.split()) == space.parse(space.codes(arch)) == arch
        assert space.parse(digits.replace(" ", "|")) == space.parse(digits.replace(" ", "")) == arch
        assert space.parse(space.to_stages(arch)) == arch


WRONG = {
    "5433 3230 0010 0002": "layer15.step: got code 2 after a map of 7x7; allowed 0 (attention at 7x7) or 1 (conv at ",
    "5333 3230 0010 0000": "layer1.step: got code 3 after a map of 56x56; allowed 4 (conv at 28x28) or 5 (conv at ",
    "5433 3230 0010 0007": "layer15.step: got code 7 after a map of 7x7; allowed 0",
    "8433 3230 0010 0000": "layer0.scale: got code 8; allowed 0 (attention at 7x7), 1",
    "5433 3230": "a path is 16 codes of 0 to 5",
    "5433 3230 0010 000x": "a path is 16 codes of 0 to 5",
}


@pytest.mark.parametrize("code", WRONG)
def test_illegal_codes_name_the_layer_and_what_is_allowed(code: str) -> None:
    with pytest.raises(InputError) as error:
        hytra().parse(code)
    assert error.value.problems[0].startswith(WRONG[code])


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([[0], [1], [1] * 5, [0] * 9], "layer0.operation: got 0 on a map of 56x56; allowed 1 (1 conv, 0 attention)"),
        ([[1], [1, 0], [1] * 4, [0] * 9], "layer2.operation: got 0 on a map of 28x28; allowed 1 (1 conv, 0 attention)"),
        ([[1], [1], [2, 1, 1, 1, 1], [0] * 9], "layer2.operation: got 2 on a map of 14x14; allowed 1 or 0"),
        ([[1], [1], [1] * 5], "stages are 4 lists with 16 layers together; got 3 lists with 7"),
        ([[1], [], [1] * 6, [0] * 9], "layer1.step: got code 3 after a map of 56x56; allowed 4 (conv at 28x28)"),
    ],
)
def test_illegal_stages_name_the_layer_and_what_is_allowed(stages: Any, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        hytra().parse(stages)
    assert error.value.problems[0].startswith(sentence)


def test_attention_on_large_maps_and_steps_below_the_smallest_are_refused_in_a_sentence() -> None:
    space = hytra()
    arch = dict(space.parse("5433 3230 0010 0000"))
    with pytest.raises(InputError) as error:
        space.check(arch | {"layer0.operation": "attention", "layer9.step": "down"})
    assert error.value.problems == [
        "layer0.operation: got 'attention'; this decision is taken only where layer 0 is on scale 1 or 0 "
        "(maps of 14x14 or 7x7), and is conv elsewhere",
        "layer9.step: got 'down'; this decision is taken only where layer 8 is on scale 3, 2 or 1 "
        "(maps of 56x56, 28x28 or 14x14)",
    ]


def test_blocks_with_fewer_scales_bound_every_path() -> None:
    space = hytra(layers=4, blocks=2, block_scales=(4, 2))
    found = {tuple(space.codes(arch)) for arch in space}
    everything = {tuple(hytra(layers=4, blocks=2).codes(arch)) for arch in hytra(layers=4, blocks=2)}
    # the second block has weights for 14x14 and 7x7 only, so the first ends there
    assert found == {path for path in everything if all(code <= 3 for code in path[1:])}
    assert all(space.parse(list(path)) == space.parse(space.to_code(space.parse(list(path)))) for path in found)
    with pytest.raises(InputError, match=r"layer1\.step: got code 4 after a map of 28x28; allowed 2"):
        space.parse("4433")


def test_a_block_that_is_down_already_leaves_no_step_to_choose() -> None:
    space = hytra(layers=4, blocks=2, block_scales=(3, 1), attention_scales=0)
    assert [decision.name for decision in space.decisions] == ["layer0.scale"]
    assert [space.to_code(arch) for arch in space] == ["10 00", "00 00"]


def test_sampling_is_uniform_over_the_paths_of_a_block() -> None:
    from scipy.stats import chisquare

    space = hytra(layers=4, blocks=1)
    generator = random.Random(1)
    drawn = Counter(space.sample(generator) for _ in range(131 * 60))
    assert len(drawn) == space.count() == 131
    assert chisquare(list(drawn.values())).pvalue > 0.01


def test_mutations_stay_in_the_space() -> None:
    space = hytra("bossnas")
    generator = random.Random(2)
    arch = space.sample(generator)
    for _ in range(3000):
        arch = space.mutate(arch, generator)
        assert space.check(dict(arch)) == arch


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": 10}, "option blocks: must divide layers, which is 10; got 4"),
        ({"channels": (64, 128, 128)}, "option channels: must be growing multiples of 4"),
        ({"block_scales": (4, 3, 3)}, "option block_scales: must be 4 numbers from 1 to 4 that do not grow"),
        ({"block_scales": (2, 3, 2, 2)}, "option block_scales: must be 4 numbers from 1 to 4 that do not grow"),
        ({"attention_scales": 5}, "option attention_scales: must be at most the number of scales, 4; got 5"),
        ({"head_dim": 48}, r"option head_dim: must divide a quarter of the channels where attention is offered"),
        ({"last_stride": 1}, "option last_stride: 1 needs version: retrain"),
        ({"drop_path": 1.0}, "option drop_path: "),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        create("hytra", options)


# Operations


def test_attention_weighs_values_over_keys_with_weights_that_sum_to_one() -> None:
    attention, x = Attention(8, 4), torch.randn(2, 8, 3, 5)
    query, key, value = attention.qkv(x).reshape(2, 3, 2, 4, 15).unbind(1)
    weights = (torch.einsum("bhdq,bhdk->bhqk", query, key) * 4**-0.5).softmax(-1)
    expected = torch.einsum("bhqk,bhdk->bhdq", weights, value).reshape(2, 8, 3, 5)
    torch.testing.assert_close(attention(x), expected)
    with torch.no_grad():  # values that are the same everywhere pass unchanged: each query's weights sum to 1
        attention.qkv.weight[16:].zero_()
        attention.qkv.weight[16:, 0] = 1
    x[:, 0] = 1
    torch.testing.assert_close(attention(x), torch.ones_like(x))


@pytest.mark.parametrize("operation", ["conv", "attention"])
@pytest.mark.parametrize("training", [True, False])
def test_a_new_layer_with_identity_shortcut_changes_nothing(operation: str, training: bool) -> None:
    space = hytra("tiny")
    network = space.build(space.parse("11 11" if operation == "conv" else "00 00")).train(training)
    layer = network.get_submodule("layers.2")
    assert isinstance(layer, Residual)
    x = torch.rand(2, 64, 8, 8)
    torch.testing.assert_close(layer(x), x)


def test_strided_layers_halve_maps_of_any_size() -> None:
    for pooled in (True, False):
        layer = Residual("attention", 16, 32, 2, Style(pooled, False, 4)).eval()
        assert [layer(torch.rand(1, 16, size, size)).shape[-1] for size in (2, 5, 8)] == [1, 3, 4]


def test_drop_path_grows_with_depth_and_spares_attention() -> None:
    space = hytra("tiny", version="retrain", drop_path=0.3, layers=4, blocks=1)
    network = space.build(space.parse([[1], [1], [0, 1]]))
    rates = [getattr(layer.body, "drop_path", None) for layer in network.get_submodule("layers").children()]
    assert [rate and pytest.approx(rate.drop_prob) for rate in rates] == [None, 0.1, None, 0.3]
    images = torch.rand(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))


# Networks


@pytest.mark.parametrize(("version", "networks"), [("search", 20), ("retrain", 6)])
def test_arithmetic_equals_counting_on_random_networks(version: str, networks: int) -> None:
    space = hytra("cifar", version=version, se=version == "retrain")
    generator = random.Random(3)
    for _ in range(networks):
        arch = space.sample(generator)
        with without_storage():
            network = space.build(arch)
            images = torch.empty(1, 3, 32, 32)
        counted = {"params": count_params(network)[0], "macs": count_macs(network, images)}
        assert space.cost(arch) == counted, space.to_code(arch)


@pytest.mark.parametrize("img_size", [32, 36, 63])
@pytest.mark.parametrize("options", [{}, {"version": "retrain"}, {"version": "retrain", "last_stride": 1}])
def test_rows_tell_the_shapes_that_the_network_computes(options: dict[str, Any], img_size: int) -> None:
    space = hytra("tiny", stem="imagenet", **options)
    for code in ("43 32", "22 10", "00 11"):
        arch = space.parse(code)
        network = space.build(arch, space.task(7, 1, img_size)).eval()
        seen: list[tuple[int, ...]] = []

        def note(module: nn.Module, inputs: Any, output: Tensor, seen: list[tuple[int, ...]] = seen) -> None:
            seen.append(tuple(output.shape[1:]))

        for layer in (network.get_submodule("stem"), *network.get_submodule("layers").children()):
            layer.register_forward_hook(note)
        images = torch.rand(2, 1, img_size, img_size)
        assert network(images).shape == (2, 7)
        rows = space.layers(arch, space.task(7, 1, img_size))
        assert rows is not None
        assert [(row.out_channels, row.size, row.size) for row in rows[:-1]] == seen
        assert sum(row.macs for row in rows) == count_macs(network, images)


def test_t1_keeps_the_maps_of_the_stage_before() -> None:
    for name, last in (("bossnet-t0", 7), ("bossnet-t1", 14)):
        space, arch = open_preset("hytra", name)
        assert arch is not None
        rows = space.layers(arch)
        assert rows is not None
        assert [row.size for row in rows[1:-1]] == [56, 28, *[14] * 5, *[last] * 9]


def test_images_too_small_for_the_first_layer_are_refused() -> None:
    space = hytra()
    with pytest.raises(InputError, match="images of 16 pixels are too small to start on scale 0"):
        space.build(space.parse("0" * 16), space.task(img_size=16))


@pytest.mark.parametrize("name", [name for name, preset in HyTra.presets.items() if preset.code is not None])
def test_presets_read_back(name: str) -> None:
    space, arch = open_preset("hytra", name)
    assert arch is not None
    stored = space.to_dict(arch)
    assert create(stored["space"], stored["options"]).parse(stored) == arch


@pytest.mark.parametrize(
    ("version", "code", "exporter"),
    [("search", "43 20", "torchscript"), ("retrain", "32 21", "torchscript"), ("retrain", "32 21", "dynamo")],
)
def test_networks_export_with_a_free_batch(version: str, code: str, exporter: Any, tmp_path: Path) -> None:
    space = hytra("tiny", version=version, se=version == "retrain", drop_path=0.1)
    network = space.build(space.parse(code)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("expand_norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    result = export(network, torch.rand(2, 3, 32, 32), tmp_path / "network.onnx", ExportConfig(exporter=exporter))
    assert result.parity_max_rel <= 1e-4 and {1, 2, 3} <= set(result.checked_batches)


def test_the_tiny_network_learns_digits() -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = nn.functional.interpolate(torch.tensor(digits.images).float()[:, None] / 16, size=32)
    labels = torch.tensor(digits.target)
    space = hytra("tiny")
    network = space.build(space.parse("43 20"), space.task(10, 1, 32))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for start in range(0, 960, 32):
        loss = nn.functional.cross_entropy(network(images[start : start + 32]), labels[start : start + 32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


# Pictures


def test_the_picture_shows_the_fabric_and_the_path() -> None:
    space = hytra()
    fabric, path = space.draw(), space.draw(space.parse("5433 3230 0010 0000"))
    assert "2,818,103 paths" in fabric and "56 x 56" in fabric
    assert "5433 3230 0010 0000" in path
