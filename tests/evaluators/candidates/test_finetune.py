from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.core.errors import CompressError, InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.finetune import FinetuneEvaluator, FinetuneEvaluatorConfig, Updates
from evaluators.candidates.networks import build
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from spaces.architecture import Architecture
from spaces.channels import ChannelSpace
from spaces.registry import create

QUICK = {"epochs": 2, "warmup_epochs": 0, "lr": 5e-3}


@pytest.fixture(scope="module")
def space() -> ChannelSpace:
    opened = create("channels", {"model": {"source": "builtin", "name": "cifar_resnet20"}, "widths": [0.5, 0.75, 1.0]})
    assert isinstance(opened, ChannelSpace)
    opened.default_task = opened.task(10, 3, 8)
    return opened


def evaluator(space: Any, folder: Path, **options: Any) -> FinetuneEvaluator:
    data = DigitsConfig(name="digits", image_size=8, limit_train=300, batch_size=40).load(DEFAULT, seed=0)
    settings = {"seed_train": QUICK, "steps": 3, **options}
    found = FinetuneEvaluatorConfig.model_validate(settings).make(EvaluatorContext(space, data, "cpu", 0, folder))
    assert isinstance(found, FinetuneEvaluator)
    return found


def narrower(arch: Architecture, space: ChannelSpace, *places: int) -> Architecture:
    """Return `arch` with the decisions at `places` one choice smaller."""
    found = dict(arch)
    for place in places:
        decision = space.decisions[place]
        found[decision.name] = decision.choices[decision.index(found[decision.name]) - 1]
    return space.check(found)


def about(ours: FinetuneEvaluator, arch: Architecture) -> dict[str, str]:
    with safe_open(ours.weights_path(arch, 0), "pt") as file:
        return dict(file.metadata())


def test_the_widest_network_is_trained_and_candidates_are_cut_out_of_it(space: ChannelSpace, tmp_path: Path) -> None:
    ours = evaluator(space, tmp_path)
    small = narrower(space.widest(), space, 0)
    found = ours.evaluate(small, ("top1",), 0)
    assert set(found) == set(ours.metrics)
    assert {"params": found["params"], "macs": found["macs"]} == space.cost(small)
    assert ours.weights_path(space.widest(), 0).is_file()  # it was needed first
    kept = build(space, small, ours.data, 0)
    kept.load_state_dict(load_file(ours.weights_path(small, 0)))
    assert ours.data.test is not None
    assert evaluate(kept.eval(), ours.data.test, ours.data.task)["loss"] == pytest.approx(found["loss"])


def test_without_updates_to_speak_of_a_candidate_has_its_parents_best_units(
    space: ChannelSpace, tmp_path: Path
) -> None:
    ours = evaluator(space, tmp_path, steps=1, train={"lr": 1e-12, "weight_decay": 0, "optimizer": "momentum"})
    small = narrower(space.widest(), space, 0)
    ours.evaluate(small, ("top1",), 0)
    whole, part = (load_file(ours.weights_path(arch, 0)) for arch in (space.widest(), small))
    group = space.base(space.default_task).graph.group(space.widths[0].groups[0])
    layer = next(slice.tensor for slice in group.slices if slice.role == "out" and slice.tensor.endswith("weight"))
    rows = {tuple(row.flatten().tolist()) for row in _first_inputs(whole[layer], part[layer])}
    assert {tuple(row.flatten().tolist()) for row in part[layer]} <= rows
    assert len(part[layer]) < len(whole[layer])


def _first_inputs(whole: Tensor, part: Tensor) -> Tensor:
    assert whole.shape[1:] == part.shape[1:]  # only the outputs of this layer are narrower
    return whole


def test_the_parent_is_the_smallest_network_that_is_nowhere_narrower(space: ChannelSpace, tmp_path: Path) -> None:
    ours = evaluator(space, tmp_path)
    first, other = narrower(space.widest(), space, 4), narrower(space.widest(), space, 5)
    second = narrower(first, space, 4)
    for arch in (first, other, second):
        ours.evaluate(arch, ("top1",), 0)
    assert [about(ours, arch)["updates"] for arch in (first, other, second)] == ["3", "3", "6"]
    ours.evaluate(narrower(second, space, 0), ("top1",), 0)
    assert about(ours, narrower(second, space, 0))["updates"] == "9"


def test_of_parents_that_cost_the_same_the_choice_hangs_on_no_setting(space: ChannelSpace, tmp_path: Path) -> None:
    one, other = narrower(space.widest(), space, 0), narrower(space.widest(), space, 1)
    assert space.cost(one)["params"] == space.cost(other)["params"]
    parents = set()
    for steps in range(1, 7):  # each gives the files other names
        ours = evaluator(space, tmp_path / str(steps), steps=steps)
        for arch in (one, other):
            ours._judged(build(space, arch, ours.data, 0).eval(), arch, 0, updates=0)
        parents.add(ours._parent_of(narrower(one, space, 1), 0).narrower.arch)
    assert len(parents) == 1


def test_the_same_steps_in_another_process_give_the_same_metrics(space: ChannelSpace, tmp_path: Path) -> None:
    first, second = (narrower(space.widest(), space, *places) for places in ((0,), (0, 3)))
    found = []
    for folder in ("one", "other"):
        ours = evaluator(space, tmp_path / folder, train={"epochs": 1})
        ours.evaluate(first, ("top1",), 0)
        torch.manual_seed(len(folder))
        ours = evaluator(space, tmp_path / folder, train={"epochs": 1})
        found.append(ours.evaluate(second, ("top1",), 0))
    assert found[0] == found[1]


def test_fine_tuning_images_and_judging_images_are_disjoint(space: ChannelSpace, tmp_path: Path) -> None:
    ours = evaluator(space, tmp_path)
    train, held = ours.data.train, ours.data.test
    assert train is not None and held is not None
    assert train.num_samples == 240 and held.num_samples == 60
    seen = {image.numpy().tobytes() for batch in train.batches() for image in batch.inputs}
    judged = {image.numpy().tobytes() for batch in held.batches() for image in batch.inputs}
    assert not seen & judged


def test_updates_go_on_through_the_images_where_the_parent_stopped(space: ChannelSpace, tmp_path: Path) -> None:
    loader = evaluator(space, tmp_path).data.train
    assert loader is not None and len(loader) == 6
    endless = [*loader.epoch(0), *loader.epoch(1), *loader.epoch(2)]
    later = list(Updates(loader, first=4, steps=5).epoch(0, start=1))
    assert len(later) == 4
    assert all(torch.equal(batch.inputs, endless[5 + place].inputs) for place, batch in enumerate(later))


def test_a_model_with_weights_needs_no_training(space: ChannelSpace, tmp_path: Path) -> None:
    ours = evaluator(space, tmp_path)
    before = ours.evaluate(space.widest(), ("top1",), 0)
    state = load_file(ours.weights_path(space.widest(), 0))
    save_file(state, tmp_path / "trained.safetensors")
    model = {"source": "builtin", "name": "cifar_resnet20", "checkpoint": str(tmp_path / "trained.safetensors")}
    given = create("channels", {"model": model, "widths": [0.5, 1.0]})
    given.default_task = given.task(10, 3, 8)
    theirs = evaluator(given, tmp_path / "given", seed_train=None)
    assert theirs.evaluate(theirs.widest, ("top1",), 0)["loss"] == pytest.approx(before["loss"])
    theirs.tidy()
    assert not (tmp_path / "given" / "finetuned").exists()


def test_what_is_missing_is_said(space: ChannelSpace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed_train: missing; 'cifar_resnet20' comes without weights"):
        evaluator(space, tmp_path, seed_train=None)
    with pytest.raises(InputError, match="kind finetune narrows space channels; got mobilenetv3"):
        evaluator(create("mobilenetv3", {"skeleton": "tiny", "dataset": "cifar"}), tmp_path)
    with pytest.raises(ValidationError, match=r"criterion\n.*'magnitude'"):
        evaluator(space, tmp_path, criterion="magnitud")
    with pytest.raises(CompressError, match=r"diverged: try a lower search\.evaluator\.seed_train\.lr"):
        wild = {**QUICK, "lr": 1e30, "optimizer": "sgd"}
        evaluator(space, tmp_path / "wild", seed_train=wild).evaluate(space.widest(), ("top1",), 0)
