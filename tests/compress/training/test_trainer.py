"""The Trainer with a step that only this test knows."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import equal, tiny_data, tiny_masks, tiny_model, updates_done
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.training.checkpoint import FILE_NAME, SCHEMA
from compress.training.config import TrainConfig
from compress.training.engine import Engine
from compress.training.step import Teacher, TrainingStep
from compress.training.trainer import Trainer
from tests.support.processes import Child


class Searching(TrainingStep):
    """What methods to come need, all in one, and of no use.

    A projector trains in the run's optimiser and a temperature in one of its own, on a second stream of data in every
    other update; the loss is of two passes, each run backward by itself; a running mean, a copy that follows the model
    and a number that is no tensor are its state.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.stream = stream
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.projector = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4))
        self.temperature = nn.Parameter(torch.ones(()))
        self.warmer = torch.optim.Adam([self.temperature], lr=0.05)
        self.register_buffer("mean", torch.zeros(4))
        self.average = tiny_model().requires_grad_(False)
        self.epochs = 0
        self.called: list[str] = []

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"warmer": self.warmer}

    def loss(self, model: nn.Module, batch: Any, update: int) -> Tensor:
        images, labels = batch.inputs, batch.targets
        if update % 2:
            self._warm(model, update)
        noisy = images + 0.1 * self.epochs * torch.randn_like(images)
        first = F.cross_entropy(model(noisy) / self.temperature.detach(), labels)
        self.engine.backward(first)
        logits = model(images)
        self.mean.lerp_(logits.detach().mean(0), 0.1)
        with torch.no_grad():
            target = self.average(images)
        second = F.mse_loss(self.projector(logits - self.mean), target)
        self.engine.backward(second)
        return (first + second).detach()

    def _warm(self, model: nn.Module, update: int) -> None:
        batch, *_ = islice(self.stream.epoch(update // len(self.stream), update % len(self.stream)), 1)
        self.warmer.zero_grad()
        with torch.no_grad():
            logits = model(batch.inputs)
        self.engine.backward(F.cross_entropy(logits / self.temperature, batch.targets))
        self.engine.apply(self.warmer)

    @torch.no_grad()
    def after_update(self, model: nn.Module, update: int) -> None:
        for own, other in zip(self.average.parameters(), model.parameters(), strict=True):
            own.lerp_(other, 0.1)

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epochs += 1
        self.called.append(f"begin {epoch}")

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        self.called.append(f"end {epoch}")

    def get_extra_state(self) -> int:
        return self.epochs

    def set_extra_state(self, state: int) -> None:
        self.epochs = state


CONFIG = TrainConfig(epochs=3, lr=5e-3, ema=0.9, clip_grad=1.0, checkpoint_seconds=0, keep="best")


def trainer(directory: Path | None = None, pause: float = 0.0, config: TrainConfig = CONFIG) -> Trainer:
    model, data = tiny_model(), tiny_data(pause=pause)
    step = Searching(tiny_data(48).train)
    return Trainer(model, step, data, config, seed=5, masks=tiny_masks(model), checkpoint_dir=directory)


def train(directory: Path) -> None:
    trainer(directory, pause=0.1).run()


def check_the_same(one: Trainer, other: Trainer) -> None:
    assert equal(one.model, other.model)
    assert equal(one.step, other.step)
    (first,), (second,) = (each.step.warmer.state.values() for each in (one, other))
    assert first["step"] == second["step"]
    assert torch.equal(first["exp_avg_sq"], second["exp_avg_sq"])
    losses = [[event["loss"] for event in each.position.history] for each in (one, other)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def whole() -> Trainer:
    run = trainer()
    run.run()
    return run


def test_parameters_and_state_of_a_step_train_beside_the_models(whole: Trainer) -> None:
    fresh = Searching(None)
    for name, value in whole.step.named_parameters():
        assert not torch.equal(value, fresh.get_parameter(name)), name
    assert whole.step.mean.any()
    assert whole.step.called == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]
    owned = [parameter for group in whole.updater.optimizer.param_groups for parameter in group["params"]]
    expected = [*whole.model.parameters(), *whole.step.projector.parameters()]
    assert {*map(id, owned)} == {*map(id, expected)}
    assert len(owned) == len(expected), "each once"
    assert set(whole.model.state_dict()) == set(tiny_model().state_dict()), "the result is the model alone"


def test_a_killed_run_goes_on_with_parameters_and_state_of_its_step(whole: Trainer, tmp_path: Path) -> None:
    child = Child(train, tmp_path)
    while child.process.is_alive() and updates_done(tmp_path / FILE_NAME) < 9:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert 9 <= updates_done(tmp_path / FILE_NAME) < 12, "killed in the middle of the second epoch"
    resumed = trainer(tmp_path)
    resumed.run(resume=True)
    check_the_same(resumed, whole)
    assert resumed.step.called == ["end 1", "begin 2", "end 2"]


@pytest.mark.parametrize("stop", [1, 6, 11])
def test_a_run_that_fails_at_any_update_goes_on_with_its_step(stop: int, whole: Trainer, tmp_path: Path) -> None:
    failing = trainer(tmp_path)
    loss = failing.step.loss

    def until(model: nn.Module, batch: Any, update: int) -> Tensor:
        if update == stop:
            raise KeyboardInterrupt
        return loss(model, batch, update)

    failing.step.loss = until
    with pytest.raises(KeyboardInterrupt):
        failing.run()
    resumed = trainer(tmp_path)
    resumed.run(resume=True)
    check_the_same(resumed, whole)


def test_a_checkpoint_of_another_step_or_version_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, checkpoint_seconds=0)
    trainer(tmp_path, config=config).run()
    plain = Trainer(tiny_model(), Passes(), tiny_data(), config, seed=5, checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match=r"cannot resume from .*: it belongs to another model"):
        plain.run(resume=True)
    state = torch.load(tmp_path / FILE_NAME, weights_only=True)
    torch.save(state | {"schema": SCHEMA - 1}, tmp_path / FILE_NAME)
    with pytest.raises(InputError, match="not a training checkpoint of this version; delete it"):
        trainer(tmp_path, config=config).run(resume=True)


def test_a_steps_own_weight_that_is_not_finite_is_named() -> None:
    run = trainer()
    nn.init.constant_(run.step.projector[0].bias, torch.nan)
    run.step.loss = lambda model, batch, update: model(batch.inputs).square().mean()
    with pytest.raises(CompressError, match=r"the weight 'projector\.0\.bias' is not finite"):
        run.run()


class Passes(TrainingStep):
    """The mean loss of the halves of a batch, in one pass or run backward one by one."""

    def __init__(self, one_by_one: bool = False) -> None:
        super().__init__()
        self.one_by_one = one_by_one

    def loss(self, model: nn.Module, batch: Any, update: int) -> Tensor:
        parts = [0.5 * loss for loss in self._parts(model, batch)]
        if not self.one_by_one:
            return torch.stack(parts).sum()
        for part in parts:
            self.engine.backward(part)
        return torch.stack(parts).sum().detach()

    def _parts(self, model: nn.Module, batch: Any) -> Iterator[Tensor]:
        for half in batch.split(len(batch) // 2):
            yield F.cross_entropy(model(half.inputs), half.targets)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_passes_run_backward_one_by_one_add_up(precision: str) -> None:
    config = TrainConfig(epochs=1, precision=precision, optimizer="sgd", lr=0.1, evaluate_every=0, clip_grad=0.5)
    models = [tiny_model(), tiny_model()]
    for model, one_by_one in zip(models, (False, True), strict=True):
        Trainer(model, Passes(one_by_one), tiny_data(), config).run()
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6 if precision == "32" else 1e-2)
    assert not equal(models[0], tiny_model())


def test_a_teacher_takes_no_gradient_and_renews_no_statistics() -> None:
    model = tiny_model().train()
    before = copy.deepcopy(model)
    model.training = False  # and its batch norm is not
    teacher = Teacher(model)
    teacher.prepare(Engine("cpu"))
    images = torch.randn(6, 3, 8, 8, requires_grad=True)
    for again in (True, False):
        assert not teacher(images).requires_grad
        model.train(again)
    assert equal(model, before)
