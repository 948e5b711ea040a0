from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compress.core.errors import InputError
from evaluators.tasks import DEFAULT
from spaces.zoo import BuiltModel, ModelConfig, build_model, sources

SMALL_SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}


def built(num_outputs: int = 0, image_size: int = 0, in_chans: int = 0, **config: Any) -> BuiltModel:
    return build_model(ModelConfig(**config), DEFAULT.bind(num_outputs, (in_chans, image_size, image_size)))


def refused(num_outputs: int = 0, image_size: int = 0, **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        built(num_outputs, image_size, **config)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence
    return sentence


def rebuilds(model: BuiltModel) -> bool:
    again = build_model(model.config)
    shapes = [{name: v.shape for name, v in m.module.state_dict().items()} for m in (model, again)]
    return shapes[0] == shapes[1] and again.config == model.config


def test_keeps_the_models_own_sizes_where_nobody_asks() -> None:
    model = built(name="resnet10t")
    assert model.task == DEFAULT.bind(1000, (3, 176, 176))
    assert model.pretrained_cfg["mean"] and not model.pretrained_cfg["fixed_input_size"]
    assert built(name="vit_tiny_patch16_224", kwargs={"depth": 1}).pretrained_cfg["fixed_input_size"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("r3d_18", "takes videos .* name: torchvision.models.video.resnet:r3d_18, model.inputs and task: {name: none}"),
        ("raft_small", "takes two images.* name: torchvision.models.optical_flow.raft:raft_small"),
        (
            "maskrcnn_resnet50_fpn",
            "learns from more than boxes.* {weights_backbone: null} and task: {name: detection}",
        ),
        ("quantized_resnet18", "is made for integers of torch's own; choose the one without 'quantized_'"),
    ],
)
def test_torchvisions_models_of_other_kinds_are_refused_by_name(name: str, sentence: str) -> None:
    assert re.search(f"torchvision's '{name}' {sentence}", refused(source="torchvision", name=name))


PRECISIONS = """
import torch
from torch import nn

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1).half(), nn.Linear(4, 10)
    def forward(self, x):
        return self.second(self.first(x.half()).float().mean((2, 3)))

def plain(kind):
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(*layers).to(getattr(torch, kind))

class Casting(Mixed):
    def __init__(self):
        super().__init__()
        self.half()
"""


def test_models_of_halves_or_doubles_are_worked_on_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "precisions.py").write_text(PRECISIONS)
    for kind in ("float16", "bfloat16", "float64"):
        name = {"source": "python", "name": "precisions:plain", "kwargs": {"kind": kind}}
        inputs = [{"shape": [3, 2, 2], "dtype": kind}]
        for key in ({"input_size": (3, 2, 2)}, *([{"inputs": inputs}] if kind != "bfloat16" else [])):
            model = built(**name, **key)
            assert {each.dtype for each in model.module.parameters()} == {torch.float32}
            assert f"are {kind}, it is worked on in float32" in model.note and rebuilds(model)
            assert model.config.described is None or model.config.described.main.dtype == "float32"
    mixed = built(source="python", name="precisions:Mixed", input_size=(3, 2, 2))  # which casts by itself
    assert not mixed.note and mixed.module.first.weight.dtype == torch.float16  # type: ignore[union-attr]
    sentence = refused(source="python", name="precisions:Casting", input_size=(3, 2, 2))
    assert "fails in layer 'first'" in sentence and "the weights of precisions:Casting are float16" in sentence


def test_same_seed_same_weights_and_global_generator_untouched() -> None:
    state = torch.get_rng_state()
    config = ModelConfig(source="builtin", name="cifar_resnet20")
    first, second, other = (build_model(config, seed=seed).module.conv1.weight for seed in (1, 1, 2))  # type: ignore[union-attr]
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_loads_a_checkpoint_and_reports_the_new_head(tmp_path: Path) -> None:
    save_file(dict(built(10, name="resnet10t").module.state_dict()), tmp_path / "w.safetensors")
    same = built(10, name="resnet10t", checkpoint=str(tmp_path / "w.safetensors"))
    assert same.load_report and not same.load_report.replaced and same.config.checkpoint is None
    other = built(4, name="resnet10t", checkpoint=str(tmp_path / "w.safetensors"))
    assert other.load_report and sorted(other.load_report.replaced) == ["fc.bias", "fc.weight"]


def test_resizes_position_tables_with_timms_own_filter(tmp_path: Path) -> None:
    vit = {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 1}}
    save_file(dict(built(10, **vit).module.state_dict()), tmp_path / "w.safetensors")
    small = built(10, 64, **vit, checkpoint=str(tmp_path / "w.safetensors"))
    assert small.load_report and small.load_report.reshaped == ["pos_embed"] and not small.load_report.missing


def test_python_models_come_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net_of_test_zoo.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, image_size, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size ** 2, num_classes))\n"
        "number = 3\n"
        "ready = nn.Identity()\n"
        "def wrong(): return 3\n"
        "def image(): return nn.Identity()\n"
    )
    monkeypatch.chdir(tmp_path)
    model = built(5, 8, source="python", name="own_net_of_test_zoo:net", kwargs={"width": 2})
    assert model.task.num_outputs == 5 and rebuilds(model)
    assert "takes no argument 'widht'; did you mean 'width'?" in refused(
        5, 8, source="python", name="own_net_of_test_zoo:net", kwargs={"widht": 2}
    )
    assert built(5, 8, source="python", name="./own_net_of_test_zoo.py:net").task.num_outputs == 5
    assert "is of type int; a callable is needed" in refused(source="python", name="own_net_of_test_zoo:number")
    assert "is a model already; name its class" in refused(source="python", name="own_net_of_test_zoo:ready")
    assert "nn.Module is needed" in refused(source="python", name="own_net_of_test_zoo:wrong")
    assert "logits" in refused(5, source="python", name="own_net_of_test_zoo:image")
    assert "did you mean 'net'?" in refused(source="python", name="own_net_of_test_zoo:ne")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "swin_tiny_patch4_windw7_224"}, ["model.name", "did you mean 'swin_tiny_patch4_window7_224'?"]),
        ({"source": "torchvision", "name": "resnet19"}, ["model.name", "did you mean 'resnet18'?"]),
        ({"source": "builtin", "name": "cifar_resnet57"}, ["model.name", "cifar_resnet56"]),
        ({"source": "python", "name": "no_such_module_at_all:net"}, ["model.name", "there is no module"]),
        ({"source": "python", "name": "no_colon"}, ["model.name", "package.module:callable"]),
        ({"source": "python", "name": "torch.nn.Linear"}, ["model.name", "did you mean 'torch.nn:Linear'?"]),
        (
            {"source": "python", "name": "/nets/own.py:Net"},
            ["model.name", "a file is named from the working directory"],
        ),
        ({"name": "builtin:cifar_resnet20"}, ["model.name", "source: builtin, name: cifar_resnet20"]),
        ({"name": "resnet18", "kwargs": {"drop_rat": 0.1}}, ["model.kwargs.drop_rat", "did you mean 'drop_rate'?"]),
        ({"name": "poolformer_s12", "kwargs": {"drop_pathrate": 0.1}}, ["model.kwargs.drop_pathrate"]),
        ({"name": "resnet18", "kwargs": {"output_stride": 5}}, ["model.kwargs", "'output_stride': 5"]),
        ({"name": "resnet18", "kwargs": {"num_classes": 9}, "num_outputs": 10}, ["model.kwargs.num_classes", "10"]),
        ({"name": "resnet18", "input_size": (3, 32, 32), "image_size": 64}, ["model.input_size", "64"]),
        ({"source": "builtin", "name": "cifar_resnet20", "pretrained": True}, ["model.pretrained"]),
        ({"source": "builtin", "name": "cifar_resnet20", "kwargs": {"shortcut": "C"}}, ["model.kwargs", "'A' or 'B'"]),
        ({"name": "resnet18.a9_in1k"}, ["model.name", "did you mean 'a3_in1k'?"]),
        ({"name": "resnet18", "kwargs": {"features_only": True}}, ["model.kwargs.features_only", "without logits"]),
        ({"name": "resnet18", "kwargs": {"pretrained": True}}, ["model.kwargs.pretrained", "say model.pretrained"]),
        ({"name": "resnet18", "kwargs": {"checkpoint_path": "w.pth"}}, ["kwargs.checkpoint_path", "model.checkpoint"]),
        ({"source": "torchvision", "name": "resnet18", "kwargs": {"weights": "DEFAULT"}}, ["model.kwargs.weights"]),
        ({"source": "space", "name": "nasbench_macro"}, ["model.name", "did you mean 'nas_bench_macro'?"]),
        ({"source": "python", "name": "torch.nn:Linear"}, ["model.kwargs", "without arguments", "in_features"]),
        ({"source": "python", "name": "torch.nn:Linear", "kwargs": {"size": 3}}, ["no argument 'size'"]),
        ({"source": "python", "name": "collections:OrderedDict"}, ["model.name", "OrderedDict", "nn.Module is needed"]),
        ({"source": "python", "name": "torch.nn:Identity.nothing"}, ["model.name", "has no 'Identity.nothing'"]),
        (
            {"source": "python", "name": "torch.nn:Linear", "kwargs": {"in_features": 3, "out_features": 3}},
            ["model.name", "fails on an input of (channels, height, width) (3, 224, 224)", "model.input_size"],
        ),
        ({"name": "resnet18", "checkpoint": "absent.pth"}, ["model.checkpoint", "absent.pth"]),
        (
            {"source": "torchvision", "name": "squeezenet1_1", "image_size": 4},
            ["model.name", "(3, 4, 4)", "data.image_size"],
        ),
    ],
)
def test_refuses_wrong_input_in_one_sentence(config: dict[str, Any], words: list[str]) -> None:
    sentence = refused(**config)
    assert all(word in sentence for word in words), sentence


def test_a_compiled_model_is_unwrapped_and_torchscript_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    body = "import torch\nfrom torch import nn\ndef plain(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))\n"
    made = "compiled = lambda: torch.compile(plain())\nscripted = lambda: torch.jit.script(plain())\n"
    (tmp_path / "wrapped.py").write_text(body + made + "def gone(): raise SystemExit(2)\n")
    built = build_model(ModelConfig(source="python", name="wrapped:compiled", input_size=(3, 2, 2)))
    assert type(built.module) is torch.nn.Sequential and list(built.module.state_dict()) == ["1.weight", "1.bias"]
    assert "is TorchScript" in refused(source="python", name="wrapped:scripted")
    assert "cannot be built without arguments: 2" in refused(source="python", name="wrapped:gone")


def test_memory_that_runs_out_is_no_fault_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x): raise torch.OutOfMemoryError\n"
        "def net(): raise MemoryError\n"
    )
    for name, kind in (("large:Net", torch.OutOfMemoryError), ("large:net", MemoryError)):
        with pytest.raises(kind):
            build_model(ModelConfig(source="python", name=name))


def test_lists_names() -> None:
    names = {source: sources.get(source)().names() for source in sources}
    assert "cifar_resnet110" in names["builtin"] and "vit_b_16" in names["torchvision"]
    assert "fcos_resnet50_fpn" in names["torchvision"] and "maskrcnn_resnet50_fpn" not in names["torchvision"]
    assert "swin_base_patch4_window7_224" in names["timm"] and not names["python"]


@pytest.mark.parametrize(
    "kwargs",
    [{"preset": "best"}, {"arch": "22212220"}, {"arch": {f"layer{n}": "mb6_k5" for n in range(1, 9)}}],
)
def test_a_point_of_a_space_is_a_model_and_its_resolved_config_rebuilds_it(kwargs: dict[str, Any]) -> None:
    seven = DEFAULT.bind(7, ())
    model = build_model(ModelConfig(source="space", name="nas_bench_macro", kwargs=kwargs), seven, seed=3)
    again = build_model(model.config, seven, seed=3)
    assert model.task == DEFAULT.bind(7, (3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.module(images), again.module(images))


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({}, "either preset or arch"),
        ({"preset": "best", "arch": "22212220"}, "either preset or arch"),
        ({"preset": "bset"}, "did you mean 'best'"),
        ({"arch": "2221222"}, "8"),
        ({"arch": "no_such.json"}, "no_such.json"),
        ({"preset": "best", "depth": 3}, "model.kwargs.depth"),
    ],
)
def test_a_wrong_point_of_a_space_is_one_sentence(kwargs: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        build_model(ModelConfig(source="space", name="nas_bench_macro", kwargs=kwargs))


def test_torchvisions_models_know_their_task() -> None:
    config = ModelConfig(source="torchvision", name="lraspp_mobilenet_v3_large")
    assert config.from_source.task_of(config).name == "segmentation"
    sentence = "'lraspp_mobilenet_v3_large' is for task segmentation, the recipe for classification"
    with pytest.raises(InputError, match=sentence):
        build_model(config, DEFAULT)
    assert config.from_source.misfit(config, config.from_source.task_of(config)) is None
