"""A kind of pruning and a transform that only these tests know work like the shipped ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import yaml
from pydantic import Field
from torch import Tensor, nn

import compress
from compress.bundle import Bundle, open_model
from compress.core.errors import InputError
from compress.export.exporters import ExportConfig
from compress.graph.apply import apply
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_bundle, prune_kinds
from compress.prune.kinds.structure import Structure
from compress.prune.narrow import shrunk
from compress.prune.structure import plan
from compress.runs.dry_run import dry_run
from compress.runs.pipeline import RunResult
from compress.runs.recipe import _schema, load_recipe
from compress.testing.stages import check_stage
from compress.testing.transforms import check_transform
from compress.transforms import Transform, transforms
from compress.transforms.narrow import Narrow
from evaluators.latency.measure import LatencyConfig
from spaces.zoo import ModelConfig

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "split",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {"name": "digits", "image_size": 8, "limit_train": 40, "limit_test": 20, "batch_size": 20},
    "export": {"exporter": "torchscript"},
}


class Split(Transform):
    """The head becomes two layers of a given width between them."""

    kind: Literal["split"] = "split"
    width: int = Field(description="columns between the two")

    def apply(self, model: nn.Module, example_inputs: Tensor) -> nn.Module:
        head = model.get_submodule("linear")
        if not isinstance(head, nn.Linear):
            raise InputError("'linear' is split already")
        first = nn.Linear(head.in_features, self.width, bias=False)
        model.set_submodule("linear", nn.Sequential(first, nn.Linear(self.width, head.out_features)))
        return model


class SplitHead(PruneBase):
    """The head becomes two layers."""

    keeps_weights: ClassVar[bool] = False

    kind: Literal["split"] = Field("split", description="the head is split")
    width: int = Field(4, ge=1, description="columns between the two")

    def check(self, bundle: Bundle) -> None:
        if not hasattr(bundle.model, "linear"):
            raise InputError("prune.kind: split needs a layer 'linear'")

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        u, s, v = torch.linalg.svd(bundle.model.get_parameter("linear.weight").detach(), full_matrices=False)
        bias = bundle.model.get_parameter("linear.bias").detach().clone()
        split = Split(width=self.width)
        small = split.apply(bundle.model, bundle.example_inputs())
        values = {"0.weight": s[: self.width, None] * v[: self.width], "1.weight": u[:, : self.width], "1.bias": bias}
        small.get_submodule("linear").load_state_dict(values)
        return bundle.transformed(split, small), {"notes": ["the head was split"]}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    prune_kinds.register("split")(SplitHead)
    transforms.register("split")(Split)
    _schema.cache_clear()
    yield
    del prune_kinds._items["split"], transforms._items["split"]
    _schema.cache_clear()


def run(tmp_path: Path, **sections: Any) -> RunResult:
    path = tmp_path / "split.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **sections}))
    return compress.run(path, out=tmp_path / "run")


@pytest.fixture
def bundle() -> Bundle:
    return open_model(ModelConfig(source="builtin", name="cifar_resnet20"), seed=1).bundle


def halved(bundle: Bundle) -> Bundle:
    removal = plan(bundle.model, bundle.example_inputs(), "magnitude", {"macs": 0.5}, align=1)
    return shrunk(bundle, removal, apply(removal, bundle.model))


def split(bundle: Bundle) -> Bundle:
    around: Any = None
    return prune_bundle(bundle, SplitHead(), around)[0]


@pytest.mark.parametrize("order", ["sn", "ns", "nsn", "nnsnn"])
def test_prunings_before_and_after_a_transform_are_made_again_in_their_order(
    bundle: Bundle, tmp_path: Path, order: str
) -> None:
    for letter in order:
        bundle = {"s": split, "n": halved}[letter](bundle)
    bundle.save(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    kinds = {"s": "split", "n": "narrow"}
    assert [done.kind for done in again.transforms] == [kinds[letter] for letter in order.replace("nn", "n")]
    images = bundle.example_inputs(2)
    with torch.no_grad():
        assert torch.equal(bundle.model(images), again.model(images))
    assert again.costs()["params"] == sum(p.numel() for p in bundle.model.parameters())


def test_a_kind_of_a_package_is_a_section_that_runs_resumes_and_exports(tmp_path: Path) -> None:
    check_stage("prune", {"kind": "split", "width": 3})
    result = run(tmp_path, prune=[{"kind": "structure", "ratio": 0.3, "criterion": "magnitude"}, {"kind": "split"}])
    model = compress.load(result.directory)
    assert model.get_parameter("linear.0.weight").shape == (4, 64) and (result.directory / "model.onnx").is_file()
    assert "the head was split" in (result.directory / "report.html").read_text()
    kinds = [each["kind"] for each in json.loads((result.directory / "bundle" / "transforms.json").read_text())]
    assert kinds == ["narrow", "split"]


def test_a_dry_run_shows_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "split.yaml").write_text(yaml.safe_dump({**RECIPE, "prune": {"kind": "split"}}))
    found = dry_run(load_recipe(tmp_path / "split.yaml"), "cpu")
    found.print()
    assert "the head was split" in capsys.readouterr().out
    before, after = found.predicted["params"]
    assert before - after == 640 - 4 * 74


def test_what_cannot_follow_on_masks_is_told_before_anything_runs(tmp_path: Path) -> None:
    masks = {"kind": "weights", "sparsity": 0.5}
    for kind in ("split", "merge"):
        with pytest.raises(InputError, match=rf"prune\.1\.kind: kind: {kind} changes .* put it before kind: weights"):
            run(tmp_path, prune=[masks, {"kind": kind}])
    report = run(tmp_path, prune=[{"kind": "split"}, masks]).report
    assert report["final"]["nonzero_params"] < report["final"]["params"]


def test_tokens_and_paths_do_not_follow_on_each_other_and_that_is_told_before_anything_runs(tmp_path: Path) -> None:
    tokens, paths = {"kind": "tokens"}, {"kind": "paths"}
    with pytest.raises(InputError, match=r"prune\.1\.kind: tokens leave this model already.* no sum of paths"):
        run(tmp_path, prune=[tokens, paths])
    with pytest.raises(
        InputError, match=r"prune\.1\.kind: the paths of this model are weighed already.* tokens cannot"
    ):
        run(tmp_path, prune=[paths, tokens])


def test_a_fraction_is_of_what_an_earlier_pruning_in_steps_has_left(bundle: Bundle) -> None:
    earlier = {"dense_cost": 10 * bundle.costs()["macs"], "dense_widths": {}}
    around = Surroundings(None, "cpu", 0, LatencyConfig(), ExportConfig(), first=earlier)
    config = Structure.model_validate({"kind": "structure", "budget": {"params": 0.6}, "align": 1})
    small, _ = prune_bundle(bundle, config, around)
    assert small.costs()["params"] == pytest.approx(0.6 * bundle.costs()["params"], rel=0.04)


def test_a_provider_whose_layers_cannot_be_timed_is_told_before_a_training(bundle: Bundle) -> None:
    around = Surroundings(None, "cpu", 0, LatencyConfig(provider="CUDAExecutionProvider"), ExportConfig())
    config = Structure.model_validate({"kind": "structure", "budget": {"latency": 0.5}})
    with pytest.raises(InputError, match=r"latency\.provider: .* CPUExecutionProvider only"):
        config.check_times(bundle, around)


def test_a_masked_bundle_is_refused_in_one_sentence(bundle: Bundle) -> None:
    bundle.masks = {"linear.weight": torch.ones(10, 64, dtype=torch.bool)}
    with pytest.raises(InputError, match="put it before kind: weights"):
        split(bundle)


def test_a_transform_for_another_model_is_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    twice = split(bundle)
    twice.transforms *= 2
    twice.save(tmp_path / "b")
    with pytest.raises(InputError, match=r"^bundle: in .* 'split' does not fit its base: 'linear' is split already$"):
        Bundle.load(tmp_path / "b")


class Forgetful(Split):
    """Keeps which columns were largest in the module, where no bundle finds them."""

    kind: Literal["forgetful"] = "forgetful"  # type: ignore[assignment]

    def apply(self, model: nn.Module, example_inputs: Tensor) -> nn.Module:
        scale = float(model.get_parameter("linear.weight").detach().abs().max())
        changed = super().apply(model, example_inputs)
        changed.register_forward_hook(lambda module, args, outputs: outputs * scale)
        return changed


def test_the_suite_finds_what_a_bundle_would_lose(bundle: Bundle) -> None:
    inputs = bundle.example_inputs()
    check_transform(Split(width=3), bundle.model, inputs)
    check_transform(Narrow(plan=plan(bundle.model, inputs, "magnitude", ratio=0.3, align=1)), bundle.model, inputs)
    with pytest.raises(AssertionError, match="not registered"):
        check_transform(Forgetful(width=3), copy.deepcopy(bundle.model), inputs)
    transforms.register("forgetful")(Forgetful)
    try:
        with pytest.raises(AssertionError, match="neither a field of it nor in the weights"):
            check_transform(Forgetful(width=3), copy.deepcopy(bundle.model), inputs)
    finally:
        del transforms._items["forgetful"]
