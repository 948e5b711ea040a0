from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

import compress
from compress.bundle import Bundle, class_names_in, load, open_model, saved
from compress.core.errors import InputError
from compress.graph.plan import Plan
from compress.transforms.narrow import Narrow
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.datasets import Preprocessing
from evaluators.tasks import DEFAULT
from evaluators.tasks.classification import Classification, ClassificationConfig
from spaces.zoo import ModelConfig, build_model
from tests.support.processes import Child

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)


def digits(**changes: Any) -> Any:
    return adapter.validate_python({"name": "digits", **changes})


def test_a_bundle_knows_which_output_is_which_class(tmp_path: Path) -> None:
    opened = open_model(ModelConfig(source="builtin", name="cifar_resnet20"), digits(limit_train=20, limit_test=20))
    assert opened.bundle.class_names == [str(digit) for digit in range(10)] and not opened.told
    for names, says in ((list("0123456798"), "class 8 is '8' in the data and '9' in"), (list("abcdefghij"), None)):
        replace(opened.bundle, class_names=names).save(tmp_path / "bundle")
        assert Bundle.load(tmp_path / "bundle").class_names == class_names_in(tmp_path / "bundle") == names
        if says is not None:
            with pytest.raises(InputError, match=says):
                open_model(saved(tmp_path / "bundle"), digits())
    again = open_model(saved(tmp_path / "bundle"), digits())
    assert again.bundle.class_names == opened.bundle.class_names
    assert "not called as those of the bundle: 0, 1, 2, 3, 4 and 5 more for a, b, c, d, e" in again.note


def test_classes_that_are_numbers_with_other_numbers_are_told(tmp_path: Path) -> None:
    for name in range(11):
        (tmp_path / "val" / str(name)).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / str(name) / "0.png")
    data = adapter.validate_python({"name": "imagefolder", "path": str(tmp_path), "image_size": 16})
    told = open_model(ModelConfig(source="builtin", name="cifar_resnet20"), data).told
    assert told == ["classes are numbered in the order of their names as texts: 0, 1, 10, 2, 3 and 6 more"]


@pytest.fixture
def bundle() -> Bundle:
    built = build_model(ModelConfig(source="builtin", name="cifar_resnet20"), seed=1)
    for parameter in built.module.buffers():  # batch norm statistics as after training
        if parameter.is_floating_point():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)))
    masks = {
        name: torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.5
        for name, p in built.module.named_parameters()
        if p.ndim > 1
    }
    return Bundle(
        built.module,
        built.config,
        DEFAULT.bind(10, (3, 32, 32)),
        Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3),
        masks=masks,
        metrics={"top1": 91.5, "top5": None},
        provenance=[{"stage": "dense"}],
    )


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Bundle.load(path)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("bundle: ") and str(path) in sentence
    return sentence


def logits(bundle: Bundle) -> Tensor:
    with torch.no_grad():
        return bundle.model.eval()(bundle.example_inputs(2))


def test_comes_back_bit_for_bit(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle")
    assert torch.equal(logits(again), logits(bundle)) and not again.model.training
    assert again.base == bundle.base and again.preprocessing == bundle.preprocessing
    assert (again.metrics, again.provenance, again.transforms) == (bundle.metrics, bundle.provenance, ())
    assert bundle.masks and again.masks and bundle.masks.keys() == again.masks.keys()
    assert all(torch.equal(mask, again.masks[name]) for name, mask in bundle.masks.items())
    assert next(iter(again.masks.values())).dtype == torch.bool


def load_and_call(run: Path, inputs: Path, outputs: Path) -> None:
    with torch.no_grad():
        np.save(outputs, compress.load(run)(torch.from_numpy(np.load(inputs))).numpy())


def test_comes_back_in_a_fresh_process_from_the_run_directory(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "run" / "bundle")
    np.save(tmp_path / "x.npy", bundle.example_inputs(2).numpy())
    assert Child(load_and_call, tmp_path / "run", tmp_path / "x.npy", tmp_path / "y.npy").wait() == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), logits(bundle).numpy())


def test_masks_take_one_bit_a_weight(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    assert bundle.masks
    weights = sum(mask.numel() for mask in bundle.masks.values())
    packed = load_file(tmp_path / "b" / "masks.safetensors")
    assert weights / 8 <= sum(bits.numel() for bits in packed.values()) < weights / 8 + len(packed)


def test_example_inputs_are_noise_and_always_the_same(bundle: Bundle) -> None:
    one = bundle.example_inputs(4)
    assert one.shape == (4, 3, 32, 32) and torch.equal(one, bundle.example_inputs(4)) and one.std() > 0.5


def test_saving_replaces_the_old_bundle_and_leaves_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    bundle.masks, bundle.metrics = None, {"top1": 12.5}
    bundle.save(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    assert again.masks is None and again.metrics == {"top1": 12.5}
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["bundle.json", "weights.safetensors"]


def test_a_save_that_fails_keeps_the_old_bundle(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    bundle.metrics = {"loss": float("nan")}
    with pytest.raises(ValueError, match="JSON"):
        bundle.save(tmp_path / "b")
    assert Bundle.load(tmp_path / "b").metrics["top1"] == 91.5
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_directory_that_cannot_be_written_is_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the bundle"):
        bundle.save(tmp_path / "file" / "b")


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors", "masks.safetensors"])
def test_damaged_or_absent_files_are_one_sentence(bundle: Bundle, tmp_path: Path, name: str) -> None:
    bundle.save(tmp_path / "b")
    file = tmp_path / "b" / name
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\x80\x04garbage"):
        file.write_bytes(damaged)
        refused(tmp_path / "b")
    file.unlink()
    refused(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"num_outputs": "many"}, {"preprocessing": {}}, {"parts": ["pickle"]}, {"base": {"name": ""}},
        {"task": "x"}, {"task": {"name": "classification", "x": 1}}, {"surplus": 1},
    ],
)  # fmt: skip
def test_a_manifest_that_is_wrong_is_one_sentence(bundle: Bundle, tmp_path: Path, change: dict[str, Any]) -> None:
    bundle.save(tmp_path / "b")
    file = tmp_path / "b" / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "bundle.json" in refused(tmp_path / "b")


@pytest.mark.parametrize("outputs", [10, None])
def test_a_bundle_names_its_task_and_an_older_one_without_it_is_for_classification(
    bundle: Bundle, tmp_path: Path, outputs: int | None
) -> None:
    bundle.task = bundle.task.config.of_model(outputs, (3, 32, 32))
    bundle.save(tmp_path / "b")
    file = tmp_path / "b" / "bundle.json"
    content = json.loads(file.read_text())
    assert content["task"] == {"name": "classification"} and content.pop("num_outputs") == outputs
    del content["task"]
    file.write_text(json.dumps(content | {"num_classes": outputs}))  # as 0.1.0 wrote it
    again = Bundle.load(tmp_path / "b")
    assert again.task == bundle.task and torch.equal(logits(again), logits(bundle))


class Ranking(ClassificationConfig):
    """Another task of models that give logits."""


class Pairs(ClassificationConfig):
    """Two numbers for every image, whatever the data have."""

    def bind(self, num_outputs: int, input_size: tuple[int, ...]) -> Classification:
        return super().bind(2, input_size)


def test_a_bundle_serves_another_task_if_its_outputs_do(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    model = ModelConfig(source="bundle", name=str(tmp_path / "b"))
    assert open_model(model).bundle.task == open_model(model, task=DEFAULT).bundle.task == bundle.task
    assert open_model(model, digits(), task=Ranking()).bundle.task == Ranking().bind(10, (3, 32, 32))
    with pytest.raises(InputError, match=r"has 10 classes, the data has 2 classes$"):
        open_model(model, digits(), task=Pairs())


def test_a_task_that_is_not_known_here_is_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    file = tmp_path / "b" / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task": {"name": "acme", "depth": 3}}))
    assert "is for task 'acme', which is not known here; allowed: classification" in refused(tmp_path / "b")
    with pytest.raises(InputError, match=r"^model\.name: .* is for task 'acme', which is not known here"):
        open_model(ModelConfig(source="bundle", name=str(tmp_path / "b")), digits())


def test_weights_that_do_not_fit_are_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    file = tmp_path / "b" / "weights.safetensors"
    state = load_file(file)
    save_file({name: value for name, value in state.items() if name != "linear.bias"}, file)
    assert "linear.bias" in refused(tmp_path / "b")
    save_file(state | {"linear.bias": torch.full((10,), torch.nan)}, file)
    assert "not finite" in refused(tmp_path / "b")


def test_masks_that_do_not_fit_are_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    bundle.masks = {"linear.weight": torch.ones(3, 3, dtype=torch.bool)}
    bundle.save(tmp_path / "b")
    assert "'linear.weight'" in refused(tmp_path / "b")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "holds no bundle.json" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "absent")


def half_of_the_first_block() -> Plan:
    half = tuple(range(0, 16, 2))
    block = "layer1.0"
    vectors = [f"{block}.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return Plan(
        kept={name: {0: half} for name in [f"{block}.conv1.weight", *vectors]} | {f"{block}.conv2.weight": {1: half}},
        attributes={
            f"{block}.conv1": {"out_channels": 8},
            f"{block}.bn1": {"num_features": 8},
            f"{block}.conv2": {"in_channels": 8},
        },
    )


def narrowed(bundle: Bundle, *plans: Plan) -> Bundle:
    for plan in plans:
        bundle = replace(bundle, masks=None).transformed(Narrow(plan=plan), compress.apply(plan, bundle.model))
    return bundle


def test_a_plan_is_applied_on_loading(bundle: Bundle, tmp_path: Path) -> None:
    small = narrowed(bundle, half_of_the_first_block())
    small.save(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    assert again.transforms == small.transforms and torch.equal(logits(again), logits(small))
    assert sum(p.numel() for p in again.model.parameters()) == 269_722 - 2 * 9 * 8 * 16 - 2 * 8


def test_plans_in_a_row_are_one(bundle: Bundle, tmp_path: Path) -> None:
    small = narrowed(bundle, half_of_the_first_block(), Plan(dropped=("layer1.1",)))
    (done,) = small.transforms
    assert isinstance(done, Narrow) and done.plan.dropped == ("layer1.1",) and done.plan.kept
    small.save(tmp_path / "b")
    assert torch.equal(logits(Bundle.load(tmp_path / "b")), logits(small))


def as_written_by_0_1(bundle: Bundle, folder: Path) -> Path:
    """Write a pruned bundle as 0.1.0 did: its plan alone in plan.json."""
    bundle.save(folder)
    (done,) = bundle.transforms
    (folder / "transforms.json").unlink()
    assert isinstance(done, Narrow)
    (folder / "plan.json").write_text(json.dumps(done.plan.to_dict()))
    manifest = json.loads((folder / "bundle.json").read_text())
    assert manifest["parts"] == ["transforms"]
    (folder / "bundle.json").write_text(json.dumps(manifest | {"parts": ["plan"]}))
    return folder


def test_pruned_bundles_of_0_1_0_are_read(bundle: Bundle, tmp_path: Path) -> None:
    small = narrowed(bundle, half_of_the_first_block())
    again = Bundle.load(as_written_by_0_1(small, tmp_path / "old"))
    assert again.transforms == small.transforms and torch.equal(logits(again), logits(small))
    again.save(tmp_path / "new")
    assert torch.equal(logits(Bundle.load(tmp_path / "new")), logits(small))


@pytest.mark.parametrize("name", ["plan.json", "transforms.json"])
def test_transforms_that_are_damaged_or_of_another_model_are_one_sentence(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    small = narrowed(bundle, half_of_the_first_block())
    folder = as_written_by_0_1(small, tmp_path / "b") if name == "plan.json" else tmp_path / "b"
    if name == "transforms.json":
        small.save(folder)
    file = folder / name
    for content in ("", "{}", "[1]", '[{"kind": "narrow"}]', file.read_text().replace("layer1.0", "stage1.0")):
        file.write_text(content)
        assert "plan" in refused(folder) or name in refused(folder)
    file.unlink()
    assert name in refused(folder)


def test_a_transform_that_is_not_known_here_is_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    narrowed(bundle, half_of_the_first_block()).save(tmp_path / "b")
    (tmp_path / "b" / "transforms.json").write_text('[{"kind": "acme", "n": 3}]')
    assert re.search(r"unknown transform 'acme'; allowed: .*narrow.*; install the package", refused(tmp_path / "b"))


def test_weights_without_their_plan_do_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    replace(bundle, transforms=(Narrow(plan=half_of_the_first_block()),)).save(tmp_path / "b")
    assert "do not fit its architecture" in refused(tmp_path / "b")


def test_open_model_fits_model_and_data_to_each_other() -> None:
    swin = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}
    opened = open_model(ModelConfig(name="swin_tiny_patch4_window7_224", kwargs=swin), digits())
    assert opened.data and opened.bundle.task.num_outputs == 10 and opened.load_report is None
    assert opened.bundle.preprocessing == opened.data.preprocessing
    images = next(iter(opened.data.test.batches())).inputs  # type: ignore[union-attr]
    assert opened.bundle.model(images[:2]).shape == (2, 10)
    own = open_model(ModelConfig(source="builtin", name="cifar_resnet20"), digits(channels=1, image_size=16))
    assert own.bundle.preprocessing.input_size == (1, 16, 16)


def test_open_model_without_data_keeps_the_models_own() -> None:
    for data, size in ((None, 224), (adapter.validate_python({"name": "none", "image_size": 64}), 64)):
        opened = open_model(ModelConfig(name="resnet18"), data)
        assert opened.data is None and opened.bundle.task.num_outputs == 1000
        assert opened.bundle.preprocessing.input_size == (3, size, size)
        assert opened.bundle.preprocessing.mean == (0.485, 0.456, 0.406)


def test_open_model_takes_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "run" / "bundle")
    model = ModelConfig(source="bundle", name=str(tmp_path / "run"))
    opened = open_model(model, digits())
    assert torch.equal(load(tmp_path / "run").linear.weight, opened.bundle.model.linear.weight)  # type: ignore[union-attr,arg-type]
    assert opened.data and opened.data.preprocessing == bundle.preprocessing
    with pytest.raises(InputError, match=r"model\.kwargs"):
        open_model(model.model_copy(update={"kwargs": {"shortcut": "B"}}), digits())
    with pytest.raises(InputError, match=r"model\.name: .* no bundle"):
        open_model(model.model_copy(update={"name": str(tmp_path)}), digits())
    bundle.task = DEFAULT.bind(7, (3, 32, 32))
    bundle.save(tmp_path / "run" / "bundle")
    with pytest.raises(InputError, match="has 7 classes, the data has 10"):
        open_model(model, digits())


ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.same = self.stem
        self.norm = nn.BatchNorm2d(8)
        self.turned = nn.Parameter(torch.randn(5, 8).t())
        self.none = nn.Parameter(torch.empty(0))
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("unknown", torch.tensor([float("nan"), 1.0]))
        self.register_buffer("rotary", torch.polar(torch.ones(4), torch.arange(4.0)).conj())
        self.register_buffer("on", torch.tensor([True, False]))
        self.register_buffer("ids", torch.arange(4))
        self.register_buffer("view", torch.arange(6.0).view(2, 3).t())

    def forward(self, x):
        return self.norm(self.same(x)).relu().mean((2, 3)) @ self.turned

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:  # as torchvision's MNASNet does
            raise ValueError("of another version")
        super()._load_from_state_dict(state, prefix, metadata, *rest)
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text(ODD)
    return open_model(ModelConfig(source="python", name="odd:Odd", input_size=(3, 8, 8))).bundle


def test_tensors_of_every_kind_come_back(odd: Bundle, tmp_path: Path) -> None:
    odd.masks = {"none": torch.ones(0, dtype=torch.bool), "turned": odd.model.get_parameter("turned") > 0}
    odd.save(tmp_path / "b")
    back = Bundle.load(tmp_path / "b")
    for name, value in odd.model.state_dict().items():
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(back.model.state_dict()[name])), name
    assert back.masks is not None and torch.equal(back.masks["turned"], odd.masks["turned"])
    images = odd.example_inputs()
    assert torch.equal(odd.model.eval()(images), back.model(images))


@pytest.mark.parametrize("name", ["stem.weight", "turned", "norm.running_var"])
def test_weights_that_are_not_finite_are_refused(odd: Bundle, tmp_path: Path, name: str) -> None:
    odd.model.state_dict()[name].fill_(float("nan"))
    odd.save(tmp_path / "b")
    with pytest.raises(InputError, match=f"not finite: the tensor '{name}'"):
        Bundle.load(tmp_path / "b")


def test_a_bundle_that_a_kill_left_half_replaced_comes_back(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / ".b.old")  # killed between the two renames
    with pytest.raises(InputError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Bundle, "_write", lambda self, folder: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        bundle.save(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    Bundle.load(tmp_path / "b")
