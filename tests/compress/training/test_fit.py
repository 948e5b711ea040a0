"""Training, stopping and going on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import TinyData, TinyLoader, equal, tiny_data, tiny_masks, tiny_model, updates_done
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from compress.distill.finetune import FinetuneConfig
from compress.training.checkpoint import FILE_NAME
from compress.training.config import TrainConfig
from compress.training.estimate import estimate_seconds
from compress.training.fit import fit
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.tasks.evaluation import evaluate
from tests.support.processes import Child

# Everything at once: masks, average, teacher, mixing, clipping, selection, renewed statistics.
FULL = FinetuneConfig(
    epochs=3,
    lr=5e-3,
    ema=0.9,
    clip_grad=1.0,
    mixup=0.2,
    cutmix=0.5,
    label_smoothing=0.1,
    keep="best",
    bn_recalibrate=3,
    checkpoint_seconds=0,
    distill={"loss": "kd", "temperature": 2.0},
)


def train_full(directory: Path | None, resume: bool = False, pause: float = 0.0) -> tuple[nn.Module, Any]:
    model, teacher = tiny_model(), tiny_model()
    result = fit(
        model,
        tiny_data(pause=pause),
        FULL,
        seed=11,
        masks=tiny_masks(model),
        teacher=teacher,
        checkpoint_dir=directory,
        resume=resume,
    )
    return model, result


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "seconds"} for event in history]


def test_bits_without_quotes_are_a_precision() -> None:
    assert TrainConfig.model_validate({"precision": 32}).precision == "32"
    assert TrainConfig.model_validate({"precision": "bf16-mixed", "optimizer": "AdamW"}).precision == "bf16"
    with pytest.raises(ValueError, match="precision"):
        TrainConfig.model_validate({"precision": 64})


def test_training_learns_and_leaves_the_model_in_eval_mode() -> None:
    model, events = tiny_model(), []
    result = fit(model, tiny_data(), TrainConfig(epochs=5, lr=1e-2), log=events.append)
    assert (result.epochs_run, result.stopped_by) == (5, "epochs")
    assert result.history[-1]["top1"] >= 95.0
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert events == result.history
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_two_runs_with_one_seed_agree_and_leave_the_random_state_alone() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, one = train_full(None)
    second, two = train_full(None)
    assert equal(first, second)
    assert without_time(one.history) == without_time(two.history)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, expected = train_full(None)
    path = tmp_path / FILE_NAME
    child = Child(train_full, tmp_path, False, 0.1)
    while child.process.is_alive() and updates_done(path) < 9:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    (tmp_path / f".{FILE_NAME}.half").write_bytes(b"what a kill during a write leaves")
    assert 9 <= updates_done(path) < 12, "killed in the middle of the second epoch"
    resumed, result = train_full(tmp_path, resume=True)
    assert equal(whole, resumed)
    assert without_time(result.history) == without_time(expected.history)
    assert result.best_epoch == expected.best_epoch
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "rmsproptf"])
def test_a_run_interrupted_again_and_again_ends_with_the_same_weights(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(epochs=2, lr=1e-2, optimizer=optimizer, channels_last=True, precision="bf16",
                         checkpoint_seconds=0, evaluate_every=0)  # fmt: skip
    whole, resumed, update = tiny_model(), tiny_model(), Updater.update
    fit(whole, tiny_data(), config)
    for stop in (1, 6, 10):

        def stopping(self: Updater, batch: Any, number: int, stop: int = stop) -> Tensor:
            if number == stop:
                raise KeyboardInterrupt
            return update(self, batch, number)

        monkeypatch.setattr(Updater, "update", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_model(), tiny_data(), config, checkpoint_dir=tmp_path, resume=True)
    monkeypatch.undo()
    fit(resumed, tiny_data(), config, checkpoint_dir=tmp_path, resume=True)
    assert equal(whole, resumed)
    assert all(value.is_contiguous() for value in resumed.state_dict().values())


def test_a_finished_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    first, one = train_full(tmp_path)
    second, two = train_full(tmp_path, resume=True)
    assert equal(first, second)
    assert one == two


def test_without_resume_an_old_checkpoint_does_not_count(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"from an earlier run")
    assert fit(tiny_model(), tiny_data(), TrainConfig(epochs=1), checkpoint_dir=tmp_path).epochs_run == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    fit(tiny_model(), tiny_data(), TrainConfig(epochs=1, checkpoint_seconds=0), checkpoint_dir=tmp_path)
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["tensors"]["model"]["6.weight"].numpy().tobytes()
    flipped = whole.replace(weights, bytes([weights[0] ^ 1]) + weights[1:])
    assert flipped != whole
    for damage in (b"", whole[:10], whole[: len(whole) // 2], whole[:-1], flipped):
        path.write_bytes(damage)
        with pytest.raises(InputError, match=f"{path}.*damaged"):
            fit(
                tiny_model(),
                tiny_data(),
                TrainConfig(epochs=1, checkpoint_seconds=0),
                checkpoint_dir=tmp_path,
                resume=True,
            )


def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    fit(tiny_model(), tiny_data(), TrainConfig(epochs=1, checkpoint_seconds=0), checkpoint_dir=tmp_path)
    with pytest.raises(InputError, match=r"lr was 0\.001, is 0\.1"):
        fit(
            tiny_model(),
            tiny_data(),
            TrainConfig(epochs=1, checkpoint_seconds=0, lr=0.1),
            checkpoint_dir=tmp_path,
            resume=True,
        )
    with pytest.raises(InputError, match="another model"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), tiny_data(), TrainConfig(epochs=1, checkpoint_seconds=0),
            checkpoint_dir=tmp_path, resume=True)  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_masked_weights_are_exactly_zero_in_the_model_and_in_its_average(optimizer: str) -> None:
    for ema in (None, 0.9):
        model = tiny_model()
        masks = tiny_masks(model)
        fit(model, tiny_data(), TrainConfig(epochs=2, lr=1e-2, optimizer=optimizer, ema=ema), masks=masks)
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            assert not weight[~mask].any()
            assert weight[mask].all()


class Exploding(TinyLoader):
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(epoch, start), start):
            yield batch.mapped(lambda images: images * float("inf")) if (epoch, number) == (1, 2) else batch


def test_a_loss_that_is_not_finite_is_named_and_the_checkpoint_stays_good(tmp_path: Path) -> None:
    data = tiny_data()
    data.train = Exploding(96, 16)
    config = TrainConfig(epochs=2, checkpoint_seconds=0)
    with pytest.raises(CompressError, match=r"loss is nan in epoch 2, update 9: try a lower lr.*clip_grad") as caught:
        fit(tiny_model(), data, config, checkpoint_dir=tmp_path)
    assert not isinstance(caught.value, InputError)
    assert str(tmp_path / FILE_NAME) in str(caught.value)
    resumed, whole = tiny_model(), tiny_model()
    fit(resumed, tiny_data(), config, checkpoint_dir=tmp_path, resume=True)
    fit(whole, tiny_data(), config)
    assert equal(resumed, whole)


@pytest.mark.parametrize("count", [1, 7])
def test_losses_read_late_are_the_same_and_the_update_at_fault_is_named(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = TrainConfig(epochs=2, evaluate_every=0), tiny_data()
    expected = fit(tiny_model(), data, config).history
    monkeypatch.setattr("compress.training.losses._reads", lambda device: count)
    assert without_time(fit(tiny_model(), data, config).history) == without_time(expected)
    data.train = Exploding(96, 16)
    with pytest.raises(CompressError, match="loss is nan in epoch 2, update 9:"):
        fit(tiny_model(), data, config)


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_stays_on_and_is_fast_unless_asked_to_be_exact(deterministic: bool) -> None:
    seen, cudnn = set(), torch.backends.cudnn
    model, before = tiny_model(), (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    model.register_forward_hook(lambda *_: seen.add((cudnn.enabled, cudnn.benchmark, cudnn.deterministic)))
    fit(model, tiny_data(), TrainConfig(epochs=1, deterministic=deterministic))
    assert seen == {(True, not deterministic, deterministic)}
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == before


def test_constant_buffers_may_be_infinite_and_running_statistics_may_not(tmp_path: Path) -> None:
    model = tiny_model()
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    assert fit(model, tiny_data(), TrainConfig(epochs=1)).epochs_run == 1
    model[1].running_mean.fill_(torch.inf)
    with pytest.raises(CompressError, match=r"the weight '1\.running_mean' is not finite"):
        fit(model, tiny_data(), TrainConfig(epochs=1))


def test_one_image_at_a_time_with_batch_norm_is_one_sentence_before_and_in_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 4))
    data = tiny_data(batch=1)
    for act in (fit, estimate_seconds):
        with pytest.raises(InputError, match=r"data\.batch_size"):
            act(model, data, TrainConfig(epochs=1))
    with pytest.raises(InputError, match=r"data\.batch_size"):
        fit(model, data, TrainConfig(epochs=0, bn_recalibrate=2))


def test_minutes_stop_a_run_in_the_middle_of_an_epoch() -> None:
    config = TrainConfig(epochs=100, minutes=0.3 / 60)
    result = fit(tiny_model(), tiny_data(pause=0.02), config)
    assert result.stopped_by == "minutes"
    assert result.epochs_run < 100
    assert 0.3 <= result.seconds < 5


def test_time_of_earlier_runs_counts(tmp_path: Path) -> None:
    first = fit(tiny_model(), tiny_data(pause=0.02), TrainConfig(epochs=100, minutes=0.3 / 60), checkpoint_dir=tmp_path)
    again = fit(
        tiny_model(), tiny_data(), TrainConfig(epochs=100, minutes=1), checkpoint_dir=tmp_path, resume=True
    )  # a budget that ran out has ended the run for good
    assert (again.stopped_by, again.seconds) == ("minutes", first.seconds)


def test_patience_stops_when_accuracy_no_longer_rises() -> None:
    result = fit(tiny_model(), tiny_data(), TrainConfig(epochs=60, lr=1e-2, patience=2))
    assert result.stopped_by == "patience"
    best = max(event["top1"] for event in result.history)
    assert result.history[-3]["top1"] == best
    assert result.epochs_run == len(result.history) < 60


def test_best_keeps_the_weights_of_the_best_epoch() -> None:
    config = TrainConfig(epochs=6, lr=0.3, optimizer="sgd", schedule="constant", warmup_epochs=0, keep="best")
    model = tiny_model()
    result = fit(model, tiny_data(), config)
    best = max(result.history, key=lambda event: event["top1"])
    batch = next(iter(TinyLoader(40, 40, seed=1).batches()))
    images, labels = batch.inputs, batch.targets
    assert result.best_epoch == best["epoch"]
    assert 100 * float((model(images).argmax(1) == labels).float().mean()) == pytest.approx(best["top1"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"keep": "best"}, {"ema": 0.9}, {"evaluate_every": 2}, {"evaluate_every": 0}, {"bn_recalibrate": 2}],
)
def test_the_metrics_of_a_training_are_those_of_the_weights_that_it_leaves(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig(epochs=3, lr=0.3, optimizer="sgd", warmup_epochs=0, checkpoint_seconds=0, **settings)
    for resume in (False, True):  # of the second training nothing is left to do
        model, data = tiny_model(), tiny_data()
        result = fit(model, data, config, checkpoint_dir=tmp_path, resume=resume)
        known = config.evaluate_every and not config.bn_recalibrate and not resume
        assert result.metrics == (evaluate(model, data.test, data.task) if known else None)


def test_zero_epochs_only_renew_batch_norm_statistics() -> None:
    model, before = tiny_model(), tiny_model()
    result = fit(model, tiny_data(), TrainConfig(epochs=0, bn_recalibrate=4))
    assert (result.epochs_run, result.stopped_by) == (0, "epochs")
    assert not torch.equal(model[1].running_mean, before[1].running_mean)
    assert torch.equal(model[0].weight, before[0].weight)


def test_missing_data_and_missing_teacher_are_the_users_errors() -> None:
    with pytest.raises(InputError, match="data: there are no images to train on"):
        fit(tiny_model(), TinyData(None, None), TrainConfig())
    with pytest.raises(InputError, match="need test data"):
        fit(tiny_model(), TinyData(TinyLoader(8, 4), None), TrainConfig(keep="best"))
    with pytest.raises(InputError, match="needs a teacher"):
        fit(tiny_model(), tiny_data(), FULL)


def test_the_estimate_is_near_and_leaves_everything_as_it_was() -> None:
    model, before, state = tiny_model(), tiny_model(), torch.get_rng_state()
    model[0].eval()
    config = TrainConfig(epochs=3, ema=0.9)
    estimate = estimate_seconds(model, tiny_data(pause=0.02), config, masks=tiny_masks(model))
    assert equal(model, before)
    assert not model[0].training
    assert model[1].training
    assert model[0].weight.grad is None
    assert torch.equal(state, torch.get_rng_state())
    seconds = fit(model, tiny_data(pause=0.02), config).seconds
    assert 0.3 < estimate / seconds < 3
    assert estimate_seconds(model, tiny_data(), config.model_copy(update={"minutes": 1e-4})) == pytest.approx(6e-3)
