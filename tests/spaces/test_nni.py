"""Model spaces of NNI: those of its hub against counts of its own presets, and small ones with every kind of label."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.errors import InputError
from compress.core.meta import without_storage
from evaluators.cost import count_macs, count_params
from spaces.registry import create, read_architecture, spaces
from spaces.space import Space

HUB = "nni:nni.nas.hub.pytorch"
nni_installed = importlib.util.find_spec("nni") is not None
needs_nni = pytest.mark.skipif(not nni_installed, reason="NNI is not installed: pip install 'compress[nni]'")

SMALL = """
import nni, torch
from torch import nn
from nni.mutable import Categorical, CategoricalMultiple, ExpressionConstraint, Numerical
from nni.nas.nn.pytorch import (
    InputChoice, LayerChoice, ModelSpace, MutableConv2d, MutableModule, MutableLinear, ParametrizedModule, Repeat
)

class Block(nn.Module):
    def __init__(self, index):
        super().__init__()
        kernel = nni.choice(f"kernel{index}", [1, 3])
        self.layer = LayerChoice(
            {"conv": MutableConv2d(4, 4, kernel, padding="same"), "none": nn.Identity()}, label=f"layer{index}"
        )
        self.branch = InputChoice(2, n_chosen=None, label=f"inputs{index}")
    def forward(self, x):
        y = self.branch([x, self.layer(x)])
        return x if y is None else y

class Chain(ModelSpace):
    def __init__(self, depths=(1, 3), num_classes=3):
        super().__init__()
        self.stem = MutableConv2d(2, 4, 3, padding="same")
        self.blocks = Repeat(Block, depths, label="depth")
        self.head = nn.Linear(4, num_classes)
    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))

class Scale(ParametrizedModule):
    def __init__(self, factor, activation):
        super().__init__()
        self.factor, self.activation = factor, activation()
    def forward(self, x):
        return self.factor * self.activation(x)

class Values(ModelSpace):
    def __init__(self):
        super().__init__()
        self.stem = MutableConv2d(3, 4, nni.choice("kernel", [(1, 3), (3, 1)]), padding="same")
        self.scale = Scale(
            Numerical(0.5, 1.25, quantize=0.25, label="factor"), nni.choice("activation", [nn.ReLU, nn.Sigmoid])
        )
        self.head = nn.Linear(4, 10)
    def forward(self, images):
        return self.head(self.scale(self.stem(images)).mean((2, 3))), "something else"

class Bound(Values):
    def __init__(self):
        super().__init__()
        a, b = nni.choice("a", [1, 2, 3]), nni.choice("b", [1, 2, 3])
        self.middle = Pair(a, b)

class Pair(MutableModule):
    def __init__(self, a, b):
        super().__init__()
        for each in (ExpressionConstraint(a + b == 4, label="sum"), a, b):
            self.add_mutable(each)
    def freeze(self, sample):
        return nn.Identity()

class Continuous(ModelSpace):
    def __init__(self):
        super().__init__()
        self.scale = Scale(Numerical(0, 1, label="factor"), nn.ReLU)

class NoClassifier(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = MutableLinear(nni.choice("width", [2, 3]), 4)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the model spaces above are."""
    (tmp_path / "small_spaces.py").write_text(SMALL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small_spaces", raising=False)
    return "nni:small_spaces"


@cache
def of_hub(name: str) -> Space:
    """A space of NNI's hub as it is; NASNet's takes seconds to make."""
    return create(f"{HUB}.{name}")


def preset(class_name: str, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return sample and constructor arguments of a network that comes with NNI's hub."""
    import nni.nas.hub.pytorch as hub

    kind, found = getattr(hub, class_name), {}
    monkeypatch.setattr(
        kind, "frozen_factory", lambda sample: lambda **kwargs: found.update(sample=sample, kwargs=kwargs)
    )
    kind.load_searched_model(name)
    return found["sample"], found["kwargs"]


def problem(name: str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        create(name, options)
    (sentence,) = caught.value.problems
    return sentence


def test_is_not_listed_and_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(name.startswith("nni") for name in spaces.names())
    for name in [name for name in sys.modules if name == "nni" or name.startswith("nni.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nni", None)
    assert problem(f"{HUB}.ENAS") == f"space {HUB}.ENAS needs the extra: pip install 'compress[nni]'"


@needs_nni
def test_a_class_that_is_not_there_is_named_with_the_nearest() -> None:
    sentence = problem(f"{HUB}.NasNet")
    assert sentence.startswith(f"space {HUB}.NasNet: nni.nas.hub.pytorch has no ModelSpace 'NasNet'; allowed: Amoeba")
    assert sentence.endswith("did you mean 'NASNet'?")
    assert "collections has no ModelSpace 'OrderedDict'; it has none" in problem("nni:collections.OrderedDict")
    assert "no module 'no.such.module' (package.module.Class)" in problem("nni:no.such.module.Space")
    assert "no module ''" in problem("nni:ENAS")


@needs_nni
@pytest.mark.parametrize(
    ("name", "labels", "conditional"), [("NASNet", 42, 0), ("MobileNetV3Space", 67, 39), ("ProxylessNAS", 26, 15)]
)
def test_labels_of_the_hub_become_decisions(name: str, labels: int, conditional: int) -> None:
    space = of_hub(name)
    assert len(space.decisions) == labels
    assert sum(decision.when is not None for decision in space.decisions) == conditional


@needs_nni
@pytest.mark.parametrize(
    ("class_name", "name", "params", "macs"),
    [
        ("MobileNetV3Space", "mobilenetv3-large-100", 5_483_032, 216_589_760),
        ("ProxylessNAS", "proxyless-mobile", 4_080_512, 320_427_584),
        ("ProxylessNAS", "proxyless-gpu", 7_119_848, 465_260_160),
        ("ProxylessNAS", "proxyless-cpu", 4_361_648, 439_243_864),
    ],
)
def test_networks_of_the_hub_have_their_known_cost(
    class_name: str, name: str, params: int, macs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, kwargs = preset(class_name, name, monkeypatch)
    space = create(f"{HUB}.{class_name}", {"kwargs": kwargs})
    arch = space.check(space.from_code(sample))
    assert space.cost(arch, space.task(img_size=224)) == {"params": params, "macs": macs}
    assert space.from_code(space.to_code(arch)) == arch


NASNET_A = {  # block: (first operation, its input, second operation, its input); NNI's input 0 is the cell before last
    "normal": [
        ("sep_conv_5x5", 1, "sep_conv_3x3", 0),
        ("sep_conv_5x5", 0, "sep_conv_3x3", 0),
        ("avg_pool_3x3", 1, "skip_connect", 0),
        ("avg_pool_3x3", 0, "avg_pool_3x3", 0),
        ("sep_conv_3x3", 1, "skip_connect", 1),
    ],
    "reduce": [
        ("sep_conv_5x5", 1, "sep_conv_7x7", 0),
        ("max_pool_3x3", 1, "sep_conv_7x7", 0),
        ("avg_pool_3x3", 1, "sep_conv_5x5", 0),
        ("skip_connect", 3, "avg_pool_3x3", 2),
        ("sep_conv_3x3", 2, "max_pool_3x3", 1),
    ],
}


@needs_nni
def test_nasnet_a_in_the_space_of_nni_has_its_known_cost() -> None:
    choices: dict[str, Any] = {"width": 32, "depth": 20}
    for cell, blocks in NASNET_A.items():
        for node, (first, first_input, second, second_input) in enumerate(blocks, 2):
            choices |= {f"{cell}/op_{node}_0": first, f"{cell}/op_{node}_1": second}
            choices |= {f"{cell}/input_{node}_0": first_input, f"{cell}/input_{node}_1": second_input}
    cost = of_hub("NASNet").cost(choices)
    assert cost["params"] == 3_061_738 and round(cost["macs"] / 1e6, 2) == 483.84


@needs_nni
@pytest.mark.parametrize("name", ["ENAS", "DARTS", "NasBench201", "ProxylessNAS", "MobileNetV3Space"])
def test_random_networks_build_run_and_learn(name: str) -> None:
    kwargs = {"num_cells": 4, "width": 4} if name in ("ENAS", "DARTS") else {}
    space, generator = create(f"{HUB}.{name}", {"kwargs": kwargs}), random.Random(0)
    archs, classes = [space.sample(generator) for _ in range(4)], space.default_task.num_outputs
    for arch in archs:
        assert space.parse(json.loads(json.dumps(space.to_dict(arch)))) == arch
        with without_storage():
            assert space.build(arch).eval()(torch.empty(1, 3, 32, 32)).shape == (1, classes)
    network, other = space.build(archs[0]), space.build(archs[0])
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, classes) and torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(parameter.grad is None for parameter in other.parameters())


@needs_nni
def test_the_constructor_is_told_the_task_or_the_user_that_it_cannot_be(small: str) -> None:
    space = create(f"{HUB}.MobileNetV3Space", {"kwargs": {"width_multipliers": 1.0, "depth_range": [1, 2]}})
    arch = space.sample(random.Random(0))
    assert space.build(arch, space.task(num_outputs=7))(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(InputError, match="builds networks with in_chans 3 only; got 1"):
        space.build(arch, space.task(num_outputs=7, in_chans=1))
    chain = create(f"{small}.Chain")
    assert (chain.default_task.num_outputs, chain.default_task.in_chans, chain.default_task.img_size) == (3, 2, 32)
    assert create(f"{small}.Chain", {"kwargs": {"num_classes": 5}}).default_task.num_outputs == 5
    with pytest.raises(InputError, match="builds networks with num_classes 10 only; got 7"):
        values = create(f"{small}.Values")
        values.build(values.sample(random.Random(0)), values.task(num_outputs=7))


@needs_nni
def test_a_label_is_taken_where_the_depth_and_the_layers_around_it_reach_it(small: str) -> None:
    space = create(f"{small}.Chain")
    assert {decision.name: decision.when.text for decision in space.decisions if decision.when} == {
        "layer1": "where depth is 2 or 3",
        "inputs1": "where depth is 2 or 3",
        "layer2": "where depth is 3",
        "inputs2": "where depth is 3",
        "kernel0": "where layer0 is conv",
        "kernel1": "where depth is 2 or 3 and layer1 is conv",
        "kernel2": "where depth is 3 and layer2 is conv",
    }
    per_block = 4 * 3  # four subsets of two inputs; a convolution with one of two kernels, or none
    assert space.count() == per_block + per_block**2 + per_block**3
    arch = space.check({"depth": 1, "layer0": "conv", "kernel0": 3, "inputs0": "0,1"})
    assert space.to_code(arch)["inputs0"] == [0, 1]
    assert space.cost(arch)["params"] == count_params(space.build(arch))[0] == (2 * 9 + 1) * 4 + (4 * 9 + 1) * 4 + 15
    with pytest.raises(
        InputError, match="kernel1: got 3; this decision is taken only where depth is 2 or 3 and layer1"
    ):
        space.check({**arch, "kernel1": 3})


@needs_nni
def test_choices_that_matter_change_the_network_and_the_others_do_not(small: str) -> None:
    """Whatever NNI is told of labels that are not taken, it builds the same network."""
    from nni.nas.space import model_context

    space, generator = create(f"{small}.Chain"), random.Random(0)
    for arch in itertools.islice(space, 0, 1884, 37):
        network, sample = space.build(arch), space.to_code(arch)
        for name, label in space._labels.items():  # type: ignore[attr-defined]
            if name not in arch:
                sample[name] = generator.choice(label.values)
        with model_context(sample):
            again = space._type()  # type: ignore[attr-defined]
        assert str(again) == str(network.network)


@needs_nni
def test_values_that_json_cannot_keep_become_texts_or_positions(small: str) -> None:
    space = create(f"{small}.Values")
    assert {decision.name: decision.choices for decision in space.decisions} == {
        "kernel": ("1,3", "3,1"),
        "factor": (0.5, 0.75, 1.0, 1.25),
        "activation": (0, 1),
    }
    for arch in space:
        assert space.from_code(space.to_code(arch)) == arch
        logits = space.build(arch)(torch.randn(2, 3, 8, 8))
        assert logits.shape == (2, 10)  # what else its forward returns is dropped


@needs_nni
def test_constraints_hold_for_whatever_the_space_hands_out(small: str) -> None:
    space, generator = create(f"{small}.Bound"), random.Random(0)
    wanted = {(1, 3), (2, 2), (3, 1)}
    assert space.count() == len(list(space)) == 16 * 3
    assert {(arch["a"], arch["b"]) for arch in space} == wanted
    arch = space.sample(generator)
    for _ in range(100):
        assert (arch["a"], arch["b"]) in wanted
        assert all((near["a"], near["b"]) in wanted for near in space.neighbours(arch))
        changed = space.mutate(arch, generator)
        assert changed != arch
        arch = space.sample(generator) if generator.random() < 0.5 else changed
    with pytest.raises(InputError, match="is not satisfied"):
        space.check({**arch, "a": 1, "b": 1})
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: float(space.suggest(trial)["a"]), n_trials=30)
    states = {trial.state.name for trial in study.trials}
    assert states == {"COMPLETE", "PRUNED"}
    assert all((each.params["a"], each.params["b"]) in wanted for each in study.get_trials(states=[1]))


@needs_nni
def test_what_makes_no_space_is_refused_in_a_sentence(small: str) -> None:
    assert "label factor is Numerical" in problem(f"{small}.Continuous")
    assert "with a step (quantize)" in problem(f"{small}.Continuous")
    assert "builds no image classifiers" in problem(f"{small}.NoClassifier")
    assert "cannot be made with {'dept': 3}: " in problem(f"{small}.Chain", {"kwargs": {"dept": 3}})
    with pytest.raises(InputError, match="no supernet here; NNI trains its model spaces with shared weights itself"):
        create(f"{small}.Values").supernet()


@needs_nni
def test_an_architecture_is_read_from_the_file_that_names_its_space(small: str, tmp_path: Path) -> None:
    space = create(f"{small}.Chain", {"kwargs": {"depths": [2, 2], "num_classes": 4}})
    arch, path = space.sample(random.Random(0)), tmp_path / "arch.json"
    path.write_text(json.dumps(space.to_dict(arch)))
    again, read = read_architecture(path)
    assert again.name == space.name and read == arch and again.default_task == space.default_task


@needs_nni
def test_a_network_of_the_hub_exports_to_onnx(tmp_path: Path) -> None:
    from compress.export.exporters import ExportConfig, export

    space = create(f"{HUB}.ENAS", {"kwargs": {"num_cells": 4, "width": 4}})
    network, images = space.build(space.sample(random.Random(3))), torch.randn(2, 3, 32, 32)
    result = export(network, images, tmp_path / "enas.onnx", ExportConfig(exporter="torchscript"))
    assert result.parity_max_rel < 1e-4
    assert count_macs(network.eval(), images) > 0
