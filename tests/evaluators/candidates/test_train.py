from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext, Metrics, Stopped
from evaluators.candidates.train import TrainEvaluator, TrainEvaluatorConfig
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from spaces.registry import create, open_preset
from spaces.space import Space

QUICK = {"epochs": 2, "warmup_epochs": 0}


@pytest.fixture
def space() -> Space:
    opened = open_preset("mobilenetv3", "tiny", {"resolutions": (16, 24)})[0]
    opened.default_task = opened.task(10, 3, 24)
    return opened


def evaluator(space: Space, folder: Path, train: Mapping[str, Any] = QUICK, **options: Any) -> TrainEvaluator:
    data = DigitsConfig(name="digits", image_size=24, limit_train=300, batch_size=60).load(DEFAULT, seed=0)
    config = TrainEvaluatorConfig.model_validate({"train": train, **options})
    found = config.make(EvaluatorContext(space, data, "cpu", 0, folder))
    assert isinstance(found, TrainEvaluator)
    return found


def judge(evaluator: TrainEvaluator, report: Any = None, seed: int = 0) -> Metrics:
    space = evaluator.context.space
    return evaluator.evaluate(space.sample(random.Random(5)), ("top1",), seed, report)


def test_metrics_are_those_of_the_held_out_images_and_the_cost(space: Space, tmp_path: Path) -> None:
    ours = evaluator(space, tmp_path)
    assert ours.data.test is not None and ours.data.test.num_samples == 60
    found = judge(ours)
    assert set(found) == set(ours.metrics) == {"top1", "top5", "loss", "params", "macs"}
    arch = space.sample(random.Random(5))
    assert {"params": found["params"], "macs": found["macs"]} == space.cost(arch)
    assert 0 < found["top1"] <= found["top5"] <= 100


def test_the_seed_and_the_architecture_decide_and_nothing_else(space: Space, tmp_path: Path) -> None:
    first = judge(evaluator(space, tmp_path))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert judge(evaluator(space, tmp_path)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert judge(evaluator(space, tmp_path), seed=1)["loss"] != first["loss"]


def test_every_epoch_is_reported_and_the_pruner_can_stop(space: Space, tmp_path: Path) -> None:
    heard: list[tuple[int, float]] = []

    def report(step: int, value: float) -> bool:
        heard.append((step, value))
        return step == 2

    with pytest.raises(Stopped) as stopped:
        judge(evaluator(space, tmp_path, {**QUICK, "epochs": 4}), report)
    assert [step for step, _ in heard] == [1, 2] and all(0 <= value <= 100 for _, value in heard)
    assert stopped.value.step == 2


def test_a_search_for_low_loss_hears_of_losses(space: Space, tmp_path: Path) -> None:
    heard: list[float] = []
    arch = space.sample(random.Random(5))
    ours = evaluator(space, tmp_path)
    found = ours.evaluate(arch, ("loss",), 0, lambda step, value: bool(heard.append(value)))
    assert heard[-1] == pytest.approx(found["loss"])


def test_a_diverged_candidate_is_worth_nothing(
    space: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = judge(evaluator(space, tmp_path, {**QUICK, "lr": 1e30, "optimizer": "sgd"}, keep_weights=True))
    assert found["top1"] == 0 and found["top5"] == 0 and found["loss"] > 80
    assert "counts as top1 0" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


def test_kept_weights_are_those_that_were_judged(space: Space, tmp_path: Path) -> None:
    ours = evaluator(space, tmp_path, keep_weights=True)
    found = judge(ours)
    arch = space.sample(random.Random(5))
    model = space.build(space.canonical(arch), space.task(10, 3))
    model.load_state_dict(load_file(ours.weights_path(arch, 0)))
    data = DigitsConfig(name="digits", image_size=space.input_size(arch), limit_train=300).load(DEFAULT, seed=0)
    from evaluators.datasets.holdout import with_holdout

    assert data is not None
    held = with_holdout(data, 0.2, 0).test
    assert held is not None
    assert evaluate(model, held, data.task)["loss"] == pytest.approx(found["loss"], abs=1e-6)


def test_a_killed_training_goes_on_where_it_was(space: Space, tmp_path: Path) -> None:
    steps: list[int] = []

    def kill(step: int, value: float) -> bool:
        if step == 2:
            raise KeyboardInterrupt
        return False

    whole = judge(evaluator(space, tmp_path / "whole", {**QUICK, "epochs": 3, "checkpoint_seconds": 0}))
    with pytest.raises(KeyboardInterrupt):
        judge(evaluator(space, tmp_path / "killed", {**QUICK, "epochs": 3, "checkpoint_seconds": 0}), kill)
    again = judge(
        evaluator(space, tmp_path / "killed", {**QUICK, "epochs": 3, "checkpoint_seconds": 0}),
        lambda step, value: bool(steps.append(step)),
    )
    assert steps == [2, 3]
    assert again == whole
    assert not list((tmp_path / "killed" / "training").glob("*/training.pt"))
    evaluator(space, tmp_path / "killed").tidy()
    assert not list((tmp_path / "killed").iterdir())


def test_training_without_data_is_an_error(space: Space, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind train needs images"):
        TrainEvaluatorConfig().make(EvaluatorContext(space, None, "cpu", 0, tmp_path))


TAUGHT = {**QUICK, "step": {"name": "distilled", "loss": {"loss": "logits"}}}


def pupils(folder: Path, teacher: dict[str, Any] | None, train: Mapping[str, Any] = TAUGHT) -> TrainEvaluator:
    """Candidates of space n2n, which has a model of its own."""
    opened = create("n2n", {"model": {"source": "python", "name": "small_vgg:build", "input_size": (3, 24, 24)}})
    opened.default_task = opened.task(10, 3, 24)
    return evaluator(opened, folder, train, teacher_train=teacher)


def test_candidates_learn_from_the_given_model_which_is_trained_once(tmp_path: Path) -> None:
    ours = pupils(tmp_path, QUICK)
    taught, again = judge(ours), judge(pupils(tmp_path, QUICK))
    assert taught == again and len(list(tmp_path.glob("teacher-*.safetensors"))) == 1
    untaught = judge(pupils(tmp_path / "alone", None, QUICK))
    assert taught["loss"] != untaught["loss"]
    given = ours.given()
    assert ours.has_given and given["params"] > taught["params"] and 0 <= given["top1"] <= 100
    assert pupils(tmp_path, {**QUICK, "epochs": 1}).given()["loss"] != given["loss"]


def test_a_given_model_without_weights_needs_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher_train: missing; 'small_vgg:build' comes without weights"):
        pupils(tmp_path, None)


def test_candidates_of_a_space_without_a_model_need_one_to_learn_from(space: Space, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="candidates learn from the recipe's model; name it in model"):
        evaluator(space, tmp_path, TAUGHT)
