from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from compress.bundle import Bundle, open_model
from compress.runs.pipeline import run
from compress.runs.recipe import load_recipe
from evaluators.candidates.networks import accuracy
from evaluators.candidates.train import TrainEvaluator
from evaluators.datasets.npz import NpzConfig
from search.job import SearchJob
from spaces.registry import create, open_preset
from spaces.zoo import ModelConfig

TRAIN: dict[str, Any] = {
    "space": {"name": "mobilenetv3", "preset": "tiny"},
    "strategy": {"name": "random"},
    "evaluator": {"kind": "train", "train": {"epochs": 1}},
    "trials": 2,
}
DATA = {"name": "digits", "image_size": 8, "limit_train": 100, "limit_test": 50, "batch_size": 20}
NETADAPT = {
    "space": {"name": "channels", "options": {"include": ["layer3*"], "widths": [0.5, 1.0]}},
    "strategy": {"name": "netadapt", "resource": "macs", "target": 0.9, "delta": 0.05},
    "evaluator": {"kind": "finetune", "seed_train": {"epochs": 1}, "steps": 2},
    "keep": 9,
}


def searched(folder: Path, search: dict[str, Any], **sections: Any) -> Path:
    recipe = {
        "version": 1,
        "name": "weights",
        "data": DATA,
        "search": search,
        **sections,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run(folder / "recipe.yaml", out=folder / "run", device="cpu").directory


def best(run: Path, rank: int = 1) -> Path:
    return run / "stages" / "01-search" / f"best{rank}"


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "weights.safetensors")


def same(bundle: Bundle, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(bundle.model.state_dict()[name], value) for name, value in state.items())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that keeps its two best, with their weights."""
    evaluator = {**TRAIN["evaluator"], "keep_weights": True}
    return searched(tmp_path_factory.mktemp("kept"), {**TRAIN, "evaluator": evaluator, "keep": 2})


def test_the_winner_keeps_the_weights_of_its_evaluation_where_they_were_kept(kept: Path) -> None:
    assert same(Bundle.load(kept), weights(best(kept)))
    steps = json.loads((kept / "bundle" / "bundle.json").read_text())["provenance"]
    assert [step["stage"] for step in steps] == ["search", "dense"]


def test_where_no_weights_were_kept_the_best_is_no_bundle_but_an_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = searched(tmp_path, TRAIN)
    assert sorted(path.name for path in best(directory).parent.glob("best*")) == ["best1.json", "best1.svg"]
    assert "the winner has no trained weights" in capsys.readouterr().err
    model = {"source": "space", "name": "mobilenetv3", "kwargs": {"arch": str(best(directory).with_suffix(".json"))}}
    opened = open_model(ModelConfig.model_validate(model)).bundle
    assert opened.model.state_dict().keys() == Bundle.load(directory).model.state_dict().keys()


def test_a_bundle_of_the_best_is_as_good_as_its_trial_was(kept: Path) -> None:
    recipe = load_recipe(kept / "recipe.yaml")
    assert recipe.search is not None
    job = SearchJob(recipe.search, recipe.data, None, recipe.name, recipe.seed, "cpu", kept.resolve())
    evaluator = job.judge().evaluator
    assert isinstance(evaluator, TrainEvaluator)
    details = json.loads((best(kept).parent / "details.json").read_text())["search"]
    assert len(details["best"]) == 2
    for rank, entry in enumerate(details["best"], start=1):
        bundle = Bundle.load(best(kept, rank))
        found = accuracy(bundle.model, evaluator.data, "cpu")
        (step,) = bundle.provenance
        assert (step["stage"], step["trial"], step["metrics"]) == ("search", entry["trial"], entry["metrics"])
        assert found == {name: entry["metrics"][name] for name in found}


def test_a_bundle_of_the_best_can_be_pruned(kept: Path, tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "name": "pruned",
        "model": {"source": "bundle", "name": str(best(kept, 2))},
        "data": DATA,
        "prune": {"kind": "structure", "criterion": "magnitude", "budget": {"macs": 0.8}, "align": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    report = run(tmp_path / "recipe.yaml", out=tmp_path / "run", device="cpu").report
    assert report["final"]["macs"] == pytest.approx(0.8 * report["baseline"]["macs"], rel=0.02)
    assert [step["stage"] for step in Bundle.load(tmp_path / "run").provenance] == ["search", "dense", "prune"]


def test_a_search_killed_after_its_stage_goes_on_from_the_bundle(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    shutil.rmtree(tmp_path / "run" / "stages" / "02-dense")
    run(kept / "recipe.yaml", out=tmp_path / "run", resume=True, device="cpu")
    assert same(Bundle.load(tmp_path / "run"), weights(best(kept)))


def test_a_bundle_of_a_space_remembers_its_number_of_classes(tmp_path: Path) -> None:
    space, _ = open_preset("mobilenetv3", "tiny", {})
    found = space.to_dict(next(iter(space)))
    kwargs = {"options": found["options"], "arch": found["choices"]}
    images, labels = np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 4
    np.savez(tmp_path / "four.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = NpzConfig(name="npz", path=str(tmp_path / "four.npz"))
    open_model(ModelConfig(source="space", name="mobilenetv3", kwargs=kwargs), data).bundle.save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").task.num_outputs == 4


def test_a_bundle_of_a_narrowed_model_needs_that_models_checkpoint_no_more(tmp_path: Path) -> None:
    checkpoint, found = tmp_path / "whole.safetensors", tmp_path / "bundle"
    whole = ModelConfig(source="builtin", name="cifar_resnet20")
    save_file(open_model(whole).bundle.model.state_dict(), checkpoint)
    options = {"model": {**whole.model_dump(), "checkpoint": str(checkpoint)}, "include": ["layer3*"]}
    space = create("channels", options)
    kwargs = {"options": options, "arch": dict(space.sample(random.Random(0)))}
    bundle = open_model(ModelConfig(source="space", name="channels", kwargs=kwargs)).bundle
    bundle.save(found)
    checkpoint.unlink()
    assert same(Bundle.load(found), bundle.model.state_dict())


def test_netadapts_winner_is_its_last_network_fine_tuned_and_the_seed_comes_last(tmp_path: Path) -> None:
    directory = searched(tmp_path, NETADAPT, model={"source": "builtin", "name": "cifar_resnet20"})
    found = weights(best(directory))
    assert same(Bundle.load(directory), found)
    whole = weights(max(best(directory).parent.glob("best*/")))
    assert whole["layer3.0.conv1.weight"].shape[0] == 64
    assert any(value.shape != whole[name].shape for name, value in found.items())
    assert not list((directory / "evaluations").rglob("*.safetensors"))  # nothing else stays
