from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from channel_cases import CIFAR, MODELS, channels, images, samples
from torch import nn

from compress.core.errors import InputError
from compress.testing.spaces import enliven

DENSE = """
import torch
from torch import nn


class Dense(nn.Module):
    '''The norm reads a concatenation, so what it keeps of its statistics is no prefix; two names share one weight.'''

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 1)
        self.again = nn.Conv2d(6, 8, 3, padding=1)
        self.again.weight = self.two.weight
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.one(x)
        x = self.last(self.norm(torch.cat([x, self.two(x)], 1)).relu())
        return self.fc(self.again(x).mean((2, 3)))
"""

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@every_model
def test_the_active_supernet_computes_what_the_extracted_network_computes(name: str) -> None:
    space = channels(MODELS[name], depth=True)
    net = space.supernet()
    enliven(net)
    x = images(space, 4)
    with torch.no_grad():
        for arch in samples(space, 15 if name == "cifar_resnet20" else 4):
            net.activate(arch)
            for training in (False, True):
                alone = net.train(training).extract()
                assert alone.training == training
                expected = alone(x)
                assert (net(x) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
            inherited = net.inherited(arch)
            for key, value in alone.state_dict().items():  # running statistics after the step in training mode
                assert torch.allclose(inherited[key], value, atol=1e-6), key


@every_model
def test_the_widest_architecture_of_the_supernet_is_the_whole_network(name: str) -> None:
    space = channels(MODELS[name], depth=True)
    net = space.supernet().eval()
    x = images(space)
    expected = net.network(x)
    net.activate(samples(space, 1)[0])
    net(x)
    net.activate(space.widest())
    assert torch.equal(net(x), expected)


def test_a_step_leaves_blocks_without_gradient_and_unused_units_at_zero() -> None:
    space = channels(CIFAR, depth=True)
    net = space.supernet()
    arch = {name: choice for name, choice in space.widest().items() if name != "layer2.2.conv1.width"}
    net.activate({**arch, "layer1.0.conv1.width": 5, "layer2.depth": 2})
    net(images(space)).square().sum().backward()
    untouched = {name for name, parameter in net.network.named_parameters() if parameter.grad is None}
    assert untouched == {name for name, _ in net.network.named_parameters() if name.startswith("layer2.2.")}
    gradient = net.network.layer1[0].conv1.weight.grad
    assert gradient[:5].abs().sum() > 0 and gradient[5:].abs().sum() == 0


def test_shared_weights_stay_whole_and_registered_whatever_is_active() -> None:
    space = channels(CIFAR, depth=True)
    net = space.supernet()
    whole = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in net.state_dict().items()}
    for arch in samples(space, 3):
        net.activate(arch)
        net(images(space))
        assert {name: (tensor.data_ptr(), tensor.shape) for name, tensor in net.state_dict().items()} == whole


def test_a_copy_has_weights_of_its_own() -> None:
    net = channels(CIFAR).supernet()
    net.activate(samples(channels(CIFAR), 1)[0])
    twin, x = copy.deepcopy(net), images(channels(CIFAR))
    nn.init.zeros_(net.network.linear.weight)
    assert net(x).std(0).max() == 0 < twin(x).std(0).max()
    assert torch.equal(twin(x), twin.extract()(x))


def test_a_failing_forward_pass_leaves_the_shared_weights_in_place() -> None:
    space = channels(CIFAR)
    net = space.supernet()
    net.activate(samples(space, 1)[0])
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 4, 32, 32))
    assert net.network.layer1[0].conv1.weight.shape == (16, 16, 3, 3)


def test_statistics_behind_a_concatenation_and_shared_weights_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dense_of_channels.py").write_text(DENSE)
    monkeypatch.syspath_prepend(tmp_path)
    space = channels({"source": "python", "name": "dense_of_channels:Dense", "input_size": (3, 8, 8)})
    with pytest.raises(InputError, match="has no residual blocks to leave out"):
        channels({"source": "python", "name": "dense_of_channels:Dense", "input_size": (3, 8, 8)}, depth=True)
    net = space.supernet()
    x = images(space, 4)
    for arch in samples(space, 10):
        net.train().activate(arch)
        alone = net.extract()
        before = net.network.norm.running_mean.clone()
        with torch.no_grad():
            assert torch.allclose(net(x), alone(x), atol=1e-5)
        inherited = net.inherited(arch)
        assert all(torch.allclose(inherited[key], value, atol=1e-6) for key, value in alone.state_dict().items())
        one, two = arch.number("one.width"), arch.number("two.width")
        changed = (net.network.norm.running_mean != before).nonzero().flatten().tolist()
        assert changed == [*range(one), *range(6, 6 + two)]


@every_model
def test_sorting_units_keeps_the_function_and_puts_the_best_first(name: str) -> None:
    space = channels(MODELS[name], depth=True)
    net = space.supernet().eval()
    enliven(net)
    x = images(space)
    with torch.no_grad():
        expected = net(x)
        arch = samples(space, 1)[0]
        net.activate(arch)
        net.sort_units("magnitude")
        assert net.active == arch
        assert torch.allclose(net(x), net.extract()(x), atol=1e-5)
        net.activate(space.widest())
        assert torch.allclose(net(x), expected, atol=1e-4 * float(expected.abs().max()))
    again = space.ranking("magnitude", module=net.network)
    assert all(torch.allclose(score, score.sort(descending=True).values) for score in again.scores.values())
