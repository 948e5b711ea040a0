from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import chisquare
from torch import Tensor

from compress.core.errors import InputError
from compress.runs.stages.supernet import SupernetStage
from compress.training.optimizer import make_optimizer, make_schedule
from compress.training.update import Updater
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.datasets import Data
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import with_holdout
from evaluators.tasks import DEFAULT
from evaluators.tasks.classification import Classification, ClassificationConfig
from evaluators.tasks.evaluation import evaluate
from evaluators.tasks.task import Metric
from search.supernets.balanced_mixture import BalancedMixture, BalancedMixtureStep, MixtureRater
from search.supernets.evaluator import SupernetEvaluatorConfig
from search.supernets.held_out import HeldOut
from search.supernets.method import SupernetConfig, SupernetContext, SupernetMethod, seeded
from search.supernets.mixture import MixtureSupernet
from search.supernets.single_path import SinglePath
from search.supernets.trained import TrainedSupernet, fingerprint
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet

SETTINGS = {"epochs": 3, "optimizer": "momentum", "lr": 0.05, "weight_decay": 1e-3, "holdout": 0.5}


def whole() -> Data:
    found = DigitsConfig(name="digits", image_size=8, limit_train=200, batch_size=20).load(DEFAULT, seed=0)
    assert found is not None
    return found


def make_space() -> Space:
    space = create("nas_bench_macro", {"stem": 4, "depths": (2, 1)})
    space.default_task = space.task(10, 3, 8)
    return space


def context(method: SupernetMethod, folder: Path, **settings: Any) -> SupernetContext:
    config = SupernetConfig.model_validate({**SETTINGS, **settings, "method": method.model_dump()})
    return SupernetContext(config, with_holdout(whole(), config.holdout, 0), "cpu", 0, folder)


def mixture(method: BalancedMixture) -> MixtureSupernet:
    space = make_space()
    with seeded(0):
        return method.make(space, space.default_task)


def trained(method: SupernetMethod, folder: Path, **settings: Any) -> Supernet:
    space = make_space()
    with seeded(0):
        supernet = method.make(space, space.default_task)
    method.train(supernet, context(method, folder, **settings))
    return supernet


def scored(models: int) -> MixtureSupernet:
    """Return supernets in which some have done better than others, at the published highest temperature."""
    found = mixture(BalancedMixture(models=models))
    generator = torch.Generator().manual_seed(0)
    found.scores.copy_(0.7 + 0.02 * torch.randn(found.scores.shape, generator=generator) - 0.01 * torch.arange(models))
    found.temperature.fill_(100)
    found.balance()
    return found


# Which architecture is trained by which model.


def test_every_model_and_every_architecture_is_drawn_as_often(tmp_path: Path) -> None:
    method = BalancedMixture(models=4)
    supernet = scored(4)
    assert int(supernet.divisions) >= 3  # they were not equally attractive
    step = method.step(supernet, context(method, tmp_path))
    drawn = [step.draw(supernet, update) for update in range(2700)]
    architectures = Counter(arch for arch, _ in drawn)
    assert len(architectures) == 27
    assert chisquare(list(architectures.values())).pvalue > 0.01
    assert chisquare(list(Counter(model for _, model in drawn).values())).pvalue > 0.01
    pairs = Counter((supernet.rows[arch], model) for arch, model in drawn)
    expected = torch.tensor([supernet.probabilities(arch) for arch in supernet.rows]) * 100
    usual = expected >= 5
    counted = torch.zeros_like(expected)
    for place, count in pairs.items():
        counted[place] = count
    statistic = float(((counted - expected) ** 2 / expected)[usual].sum())
    assert statistic < 1.5 * int(usual.sum())  # the models that do better with an architecture have more of it


def test_a_draw_depends_on_seed_update_and_scores_alone(tmp_path: Path) -> None:
    method = BalancedMixture(models=4)
    supernet = scored(4)
    one, other = (method.step(supernet, context(method, tmp_path)) for _ in range(2))
    forward = [one.draw(supernet, update) for update in range(40)]
    random.seed(5)
    torch.manual_seed(5)
    assert [other.draw(supernet, update) for update in reversed(range(40))] == forward[::-1]
    other.seed = 1
    assert [other.draw(supernet, update) for update in range(40)] != forward


@pytest.mark.parametrize("rebalance", ["epoch", "batch"])
def test_temperature_rises_and_models_are_balanced_anew(rebalance: str, tmp_path: Path) -> None:
    method = BalancedMixture.model_validate({"models": 3, "temperature": 100, "rebalance": rebalance})
    supernet = mixture(method)
    step = method.step(supernet, context(method, tmp_path, epochs=4))
    step.begin_epoch(supernet, 0)
    assert float(supernet.temperature) == 1
    assert int(supernet.divisions) == 0
    assert step.draw(supernet, 0)[1] in range(3)
    assert supernet.probabilities(next(iter(supernet.rows))) == pytest.approx([1 / 3] * 3)
    step.begin_epoch(supernet, 2)
    assert float(supernet.temperature) == pytest.approx(1 + 99 * 2 / 4)
    supernet.scores[:, 0] += 0.05  # within the epoch
    step.draw(supernet, 1)
    share = torch.tensor([supernet.probabilities(arch) for arch in supernet.rows]).mean(0)
    assert (float(share.max()) < 0.34) == (rebalance == "batch")


# Training.


def test_one_model_is_single_path_bit_for_bit(tmp_path: Path) -> None:
    alone = trained(SinglePath(), tmp_path / "single")
    ours = trained(BalancedMixture(models=1), tmp_path / "mixture")
    assert isinstance(ours, MixtureSupernet)
    theirs = ours.running_supernet.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in alone.state_dict().items())


def test_models_train_as_if_each_had_an_optimiser_and_a_schedule_of_its_own(tmp_path: Path) -> None:
    method = BalancedMixture(models=3)
    given = context(method, tmp_path, clip_grad=5.0)
    supernet, members = mixture(method), mixture(method).supernets
    step = method.step(supernet, given)
    updater = Updater(supernet, step, given.config, device="cpu", seed=0, batches=5)
    parts = [make_optimizer(given.config, each, method.step(supernet, given)) for each in members]
    schedules = [make_schedule(given.config, each, 5) for each in parts]
    assert given.data.train is not None
    used = []
    for update in range(15):
        batch = list(given.data.train.epoch(update // 5))[update % 5]
        updater.train()
        if update % 5 == 0:
            step.begin_epoch(supernet, update // 5)
        updater.update(batch, update)
        model, arch = supernet.running, supernet.active
        assert arch is not None
        used.append(model)
        for schedule in schedules:  # of all models, also those that have no turn
            schedule.step_update(update)
        member: Any = members[model].train()
        member.activate(arch)
        parts[model].zero_grad()
        given.data.task.loss(member(batch.inputs), batch).backward()
        torch.nn.utils.clip_grad_norm_(member.parameters(), 5.0)
        parts[model].step()
    assert set(used) == {0, 1, 2}
    for ours, theirs in zip(supernet.supernets, members, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    kept = sum(state["momentum_buffer"].numel() for state in updater.optimizer.state.values())
    assert kept <= sum(parameter.numel() for parameter in supernet.parameters())  # of every weight once, nothing else
    assert kept == sum(state["momentum_buffer"].numel() for part in parts for state in part.state.values())


def test_an_update_is_one_pass_forward_and_back_and_one_forward(tmp_path: Path) -> None:
    method = BalancedMixture(models=2)
    supernet = mixture(method)
    passes: list[tuple[bool, Tensor]] = []
    for member in supernet.supernets:
        member.register_forward_pre_hook(lambda _, inputs: passes.append((torch.is_grad_enabled(), inputs[0].clone())))
    given = context(method, tmp_path, epochs=1)
    result = method.train(supernet, given)
    assert [grad for grad, _ in passes] == [True, False] * 5
    held_out = HeldOut(given.data)
    for number, (_, images) in enumerate(passes[1::2]):
        assert torch.equal(images, held_out.batch(number).inputs)
    assert sum(result.details["updates_of_models"]) == 5 == int(supernet.visits.sum())
    assert result.details["never_trained"] == int((supernet.visits == 0).sum())


def test_scores_are_moving_averages_that_start_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = BalancedMixture(models=2, decay=0.8)
    supernet = mixture(method)
    step = method.step(supernet, context(method, tmp_path))
    monkeypatch.setattr(step, "_accuracy", lambda *_: 0.5)
    arch = list(supernet.rows)[7]
    supernet.use(arch, 1)
    for _ in range(2):
        step.after_update(supernet, 0)
    assert float(supernet.scores[7, 1]) == pytest.approx(0.8 * (0.8 * 1 + 0.2 * 0.5) + 0.2 * 0.5)
    assert int(supernet.visits[7, 1]) == 2
    untouched = torch.ones_like(supernet.scores, dtype=torch.bool)
    untouched[7, 1] = False
    assert torch.equal(supernet.scores[untouched], torch.ones(53))


def test_held_out_batches_leave_no_trace_in_the_weights(tmp_path: Path) -> None:
    method = BalancedMixture(models=2)
    given = context(method, tmp_path)
    supernet = mixture(method)
    step = method.step(supernet, given)
    Updater(supernet, step, given.config, device="cpu", seed=0, batches=5).train()
    supernet.use(list(supernet.rows)[20], 1)
    before = {name: value.clone() for name, value in supernet.supernets.state_dict().items()}
    step.after_update(supernet, 0)
    assert all(torch.equal(value, before[name]) for name, value in supernet.supernets.state_dict().items())
    assert all(module.training for module in supernet.modules())
    assert float(supernet.scores[20, 1]) < 1


class Stopped(Exception):
    pass


def test_a_training_stopped_at_any_update_ends_in_the_same_bits(tmp_path: Path) -> None:
    settings = {"ema": 0.9}  # the average shows each update
    method = BalancedMixture(models=2, temperature=300)
    without = trained(method, tmp_path / "whole", **settings).state_dict()
    again = mixture(method)
    for stop in (2, 13):
        again = mixture(method)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(BalancedMixtureStep, "draw", stopping(BalancedMixtureStep.draw, stop))
            method.train(again, resumed(context(method, tmp_path / "parts", checkpoint_seconds=0, **settings)))
    again = mixture(method)
    method.train(again, resumed(context(method, tmp_path / "parts", checkpoint_seconds=0, **settings)))
    assert all(torch.equal(value, without[name]) for name, value in again.state_dict().items())
    assert float(again.scores.min()) < 1


def stopping(draw: Any, stop: int) -> Any:
    def drawn(step: BalancedMixtureStep, supernet: MixtureSupernet, update: int) -> Any:
        if update == stop:
            raise Stopped
        return draw(step, supernet, update)

    return drawn


def resumed(given: SupernetContext) -> SupernetContext:
    return replace(given, resume=True)


def test_the_log_tells_how_models_were_balanced(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    method = BalancedMixture(models=2, temperature=31)
    method.train(mixture(method), replace(context(method, tmp_path), log=events.append))
    assert [event["temperature"] for event in events] == [1, 11, 21]
    assert events[0]["divisions"] == 0
    assert all(0.5 <= event["busiest_model"] <= 1 for event in events)


# What an architecture is worth.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> MixtureSupernet:
    found = trained(BalancedMixture(models=3), tmp_path_factory.mktemp("mixture"), epochs=6)
    assert isinstance(found, MixtureSupernet)
    return found


def test_the_final_table_has_every_architecture_in_every_model(finished: MixtureSupernet) -> None:
    data = with_holdout(whole(), 0.5, 0)
    raters = {choice: MixtureRater(finished, "cpu", 2, choice) for choice in ("mean", "best", "most_probable")}
    columns = ["top1_model1", "top1_model2", "top1_model3"]
    assert [name for name in raters["mean"].metrics(data) if "model" in name] == columns
    assert raters["most_probable"].metrics(data) == ("top1", "top5", "loss")
    table = []
    for arch in list(finished.rows)[::4]:
        mean, best, probable = (rater.rate(arch, data) for rater in raters.values())
        row = [mean[name] for name in columns]
        assert mean["top1"] == pytest.approx(sum(row) / 3)
        assert best["top1"] == max(row)
        assert probable["top1"] == row[finished.home(arch)]
        assert [best[name] for name in columns] == row
        assert raters["best"].holder(arch, data, finished) is finished.members(arch)[row.index(max(row))]
        table.append(row)
    assert torch.tensor(table).std(1).max() > 0  # the models are not the same


def test_an_architecture_is_at_home_where_it_was_trained() -> None:
    supernet = scored(3)
    arch = list(supernet.rows)[4]
    supernet.scores[4] = torch.tensor([1.0, 0.6, 0.7])  # the first has not had it, and is attractive for that
    supernet.visits[4] = torch.tensor([0, 5, 5])
    supernet.shift.zero_()
    assert supernet.home(arch) == 2
    supernet.activate(arch)
    assert supernet.running == 2
    images = torch.randn(4, 3, 8, 8)
    supernet.eval()
    torch.testing.assert_close(supernet.extract(arch)(images), supernet(images))
    ours, theirs = supernet.inherited(arch), supernet.members(arch)[2].inherited(arch)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_winners_inherit_from_the_model_that_was_best(finished: MixtureSupernet, tmp_path: Path) -> None:
    method = BalancedMixture(models=3, choice="best")
    data, space = whole(), make_space()
    samples, labels = fingerprint(data)
    bundle = TrainedSupernet(space, method, space.default_task, 0, 0.5, samples, labels, finished)
    bundle.save(tmp_path / "supernet")
    given = EvaluatorContext(space, data, "cpu", 0, tmp_path, None, tmp_path / "supernet")
    evaluator = SupernetEvaluatorConfig(recalibrate=2, inherit=True).make(given)
    arch = list(finished.rows)[13]
    found = evaluator.evaluate(arch, (), 0)
    assert set(evaluator.metrics) == set(found)
    path = evaluator.weights_path(arch, 0)
    assert path is not None
    model = space.build(arch)
    model.load_state_dict(load_file(path))
    held_out = with_holdout(data, 0.5, 0)
    assert held_out.test is not None
    assert evaluate(model, held_out.test, held_out.task)["top1"] == pytest.approx(found["top1"])


# What is refused.


def test_a_space_too_large_to_score_one_by_one_is_refused() -> None:
    space = create("nats_size", {})
    with pytest.raises(
        InputError, match=r"space nats_size has 32,768; allowed: spaces of up to 10,000, or method sing"
    ):
        BalancedMixture().make(space, space.default_task)


class OtherConfig(ClassificationConfig):
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("loss", "minimize", "loss", "Loss"),)


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (
            Metric("loss", "minimize", "loss", "Loss"),
            "goes by an accuracy, and task classification by loss, which is min",
        ),
        (
            Metric("top5", "maximize", "decibels", "Decibels"),
            r"got top5 \d+.* of task classification; allowed: 0 to 1, or",
        ),
    ],
)
def test_a_task_without_an_accuracy_is_refused(main: Metric, message: str, tmp_path: Path) -> None:
    class Other(Classification):
        @property
        def main_metric(self) -> Metric:
            return main

    method = BalancedMixture(models=2)
    given = context(method, tmp_path)
    given.data.task = Other(10, (3, 8, 8))
    with pytest.raises(InputError, match=message):
        method.train(mixture(method), given)


def test_outputs_that_are_not_finite_score_nothing(tmp_path: Path) -> None:
    method = BalancedMixture(models=2, decay=0)
    supernet = mixture(method)
    given = context(method, tmp_path)
    step = method.step(supernet, given)
    Updater(supernet, step, given.config, device="cpu", seed=0, batches=5)
    arch = next(iter(supernet.rows))
    supernet.use(arch, 0)
    with torch.no_grad():
        for parameter in supernet.running_supernet.parameters():
            parameter.fill_(float("nan"))
    step.after_update(supernet, 0)
    assert float(supernet.scores[0, 0]) == 0


def test_a_training_whose_temperature_follows_its_epochs_cannot_be_longer() -> None:
    same = {"schedule": "constant", "warmup_epochs": 0}
    assert SupernetConfig.model_validate({**same, "method": "single_path"}).open_ended
    config = SupernetConfig.model_validate({**same, "method": "balanced_mixture"})
    assert not config.open_ended
    said = SupernetStage("supernet").cannot_grow("epochs", 3, config, False)
    assert said == "what an update of method balanced_mixture does hangs on the number of epochs"
