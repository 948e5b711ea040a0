"""The latency model against a target whose times are known: a staircase, added up."""

import pytest
import timm
import torch
from staircase import answer_at_once

from compress.core.errors import InputError
from compress.graph.build import build_graph
from compress.latency_model import survey
from compress.latency_model.build import latency_model
from compress.latency_model.grid import Network, networks
from evaluators.latency.measure import LatencyConfig
from spaces.cifar_resnet import cifar_resnet


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """How many files the target is asked about each time."""
    return answer_at_once(monkeypatch, tmp_path)


@pytest.fixture
def resnet():
    model = cifar_resnet(14).eval()
    inputs = torch.randn(1, 3, 32, 32)
    return model, build_graph(model, inputs), inputs


def test_a_resnet_takes_what_its_layers_take(asked, resnet):
    model, graph, inputs = resnet
    found = latency_model(*resnet, LatencyConfig(), count=9)
    others = networks(graph, found.widths, 6, seed=1)
    truth = survey.Surveyor(model, graph, inputs, LatencyConfig(), None).measure(others)
    assert any(each.dropped for each in others)
    for network, measured in zip(others, truth.networks, strict=True):
        assert found.ms(network.widths, network.dropped) == pytest.approx(measured.ms, rel=1e-3)
    assert asked == [9, 6]


def test_choices_leave_out_widths_that_a_wider_one_is_as_fast_as(asked, resnet):
    found = latency_model(*resnet, LatencyConfig(), count=9)
    assert found.choices("layer1.1.conv1:channels") == (16,)  # below 16 the staircase has no step
    assert found.choices("layer2.1.conv1:channels") == (16, 32)
    assert found.choices("layer3.1.conv1:channels") == (16, 32, 48, 64)
    with pytest.raises(InputError, match="no group 'layer9'"):
        found.choices("layer9")


def test_products_of_widths_are_completed(asked):
    """Both neighbours of a layer vary: most pairs of widths are in no measured network."""
    model = torch.nn.Sequential(*(torch.nn.Conv2d(before, 128, 1) for before in (3, 128, 128, 128)))
    inputs = torch.randn(1, 3, 4, 4)
    graph = build_graph(model, inputs)
    found = latency_model(model, graph, inputs, LatencyConfig(), count=17)
    others = networks(graph, found.widths, 9, seed=1)
    truth = survey.Surveyor(model, graph, inputs, LatencyConfig(), None).measure(others)
    for network, measured in zip(others, truth.networks, strict=True):
        assert found.ms(network.widths) == pytest.approx(measured.ms, rel=1e-2)


def test_what_was_measured_is_kept(asked, resnet):
    first = latency_model(*resnet, LatencyConfig(), count=7)
    again = latency_model(*resnet, LatencyConfig(), count=7)
    assert asked == [7]
    assert again.dense_ms == first.dense_ms
    latency_model(*resnet, LatencyConfig(threads=2), count=7)
    assert asked == [7, 7]


def test_a_width_that_was_not_measured_is_refused(asked, resnet):
    found = latency_model(*resnet, LatencyConfig(), count=7)
    with pytest.raises(InputError, match=r"layer3\.1\.conv1:channels 33"):
        found.ms({"layer3.1.conv1:channels": 33})


def test_other_widths_are_measured_when_asked_for(asked, resnet):
    found = latency_model(*resnet, LatencyConfig(), count=7)
    more = found.including([{"layer3.1.conv1:channels": 33}, {"layer3.1.conv1:channels": 20}])
    assert asked == [7, 6]  # two, beside four of the first
    wide = found.ms({"layer3.1.conv1:channels": 48})
    assert more.ms({"layer3.1.conv1:channels": 33}) == pytest.approx(wide)
    assert more.ms({"layer3.1.conv1:channels": 20}) == pytest.approx(found.ms({"layer3.1.conv1:channels": 32}))


def test_networks_that_are_timed_lack_blocks_of_a_row_without_stages():
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes).eval()
    graph = build_graph(model, torch.zeros(1, 3, 16, 16))
    found = networks(graph, {group.name: (group.size // 2, group.size) for group in graph.groups}, 9, seed=0)
    dropped = [network.dropped for network in found]
    assert any(dropped)
    assert max(map(len, dropped)) < len(graph.blocks) == 3


def test_whole_networks_correct_constant_and_factor(asked, resnet):
    found = latency_model(*resnet, LatencyConfig(), count=9)
    others = networks(resnet[1], found.widths, 6, seed=2)
    slower = [(each.widths, each.dropped, 2 * found.ms(each.widths, each.dropped) + 0.5) for each in others]
    assert found.corrected(slower).dense_ms == pytest.approx(2 * found.dense_ms + 0.5)
    assert found.corrected([({}, (), 3 * found.dense_ms)]).dense_ms == pytest.approx(3 * found.dense_ms)


def test_a_real_network_is_timed_layer_by_layer(monkeypatch, tmp_path, resnet):
    monkeypatch.setattr(survey, "SECONDS", 0.0)
    found = latency_model(*resnet, LatencyConfig(), cache=tmp_path, count=7)
    alone = survey.Surveyor(*resnet, LatencyConfig(), None).measure([Network()]).networks[0].ms
    assert 0.3 < found.dense_ms / alone < 3
    assert found.ms(dropped=("layer2.1", "layer3.1")) < found.dense_ms
    assert {"conv1", "layer1.0.conv1", "layer3.1.conv2", "linear"} <= set(found.by_term())
