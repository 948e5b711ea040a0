from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.models import GoogLeNetOutputs, InceptionOutputs

from compress.core.errors import InputError
from compress.distill.finetune import FinetuneConfig
from compress.distill.losses.kd import KdConfig, kd_loss
from compress.training.config import TrainConfig
from compress.training.step import StepContext
from compress.training.supervised import Supervised, SupervisedConfig
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT


def linear() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3))


TASK = DEFAULT.bind(3, (3, 2, 2))


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(count, 3, 2, 2, generator=generator), torch.arange(count) % 3)


def updater(model: nn.Module, batches: int = 10, teacher: nn.Module | None = None, **settings: Any) -> Updater:
    config = FinetuneConfig(lr=1e-3, **settings) if teacher is not None else TrainConfig(**settings)
    data: Any = SimpleNamespace(task=TASK, train=[batch()])
    step = config.make_step(StepContext(config, data, teacher), seed=0)
    return Updater(model, step, config, device="cpu", seed=0, batches=batches)


def rates(updates: int, **settings: Any) -> list[float]:
    it = updater(linear(), **settings)
    found = []
    for update in range(updates):
        it.update(batch(), update)
        found.append(it.optimizer.param_groups[0]["lr"])
    return found


def test_cosine_warms_up_and_falls_to_its_minimum() -> None:
    lr = rates(40, epochs=4, lr=0.1, warmup_epochs=1, warmup_lr=0.01, min_lr=0.001)
    assert lr[0] == pytest.approx(0.01)
    assert lr[5] == pytest.approx(0.055)
    assert max(lr) == lr[10] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(lr[10:]))
    assert 0.001 <= lr[-1] < 0.0025


def test_steps_fall_at_the_first_update_after_their_epochs() -> None:
    lr = rates(30, epochs=3, lr=0.1, schedule="step", decay_epochs=[1, 2], warmup_epochs=0)
    assert lr == pytest.approx([0.1] * 10 + [0.01] * 10 + [0.001] * 10)


def test_constant_stays() -> None:
    assert rates(5, epochs=1, lr=0.1, schedule="constant", warmup_epochs=0) == [0.1] * 5


def test_a_plain_step_is_sgd_by_hand() -> None:
    model, twin = linear(), linear()
    it = updater(model, optimizer="momentum", momentum=0, lr=0.1, weight_decay=0, schedule="constant", warmup_epochs=0)
    sample = batch()
    images, labels = sample.inputs, sample.targets
    loss = it.update(Batch(images, labels), 0)
    expected = F.cross_entropy(twin(images), labels)
    expected.backward()
    assert torch.equal(loss, expected)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other - 0.1 * other.grad, atol=1e-7)


def test_biases_and_norms_do_not_decay_unless_asked() -> None:
    for also, decayed in ((False, {"1.weight", "3.weight"}), (True, {name for name, _ in linear().named_parameters()})):
        model = linear()
        groups = updater(model, decay_norm_and_bias=also).optimizer.param_groups
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        assert {names[id(p)] for group in groups if group["weight_decay"] > 0 for p in group["params"]} == decayed


def test_clipping_bounds_the_gradient() -> None:
    model = linear()
    it = updater(model, clip_grad=1e-3)
    it.update(batch(), 0)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_distillation_joins_the_loss_and_leaves_the_teacher_alone() -> None:
    model, teacher, before = linear(), linear(), linear()
    with torch.no_grad():
        model[1].weight.mul_(-1)
    it = updater(model, teacher=teacher, distill=KdConfig(temperature=3.0, weight=0.7))
    sample = batch()
    images, labels = sample.inputs, sample.targets
    logits = model(images).detach()
    expected = 0.7 * kd_loss(logits, teacher(images), 3.0) + 0.3 * F.cross_entropy(logits, labels)
    assert float(it.update(Batch(images, labels), 0)) == pytest.approx(expected.item())
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), before.parameters(), strict=True))


def test_a_teacher_of_other_classes_is_refused() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    it = updater(linear(), teacher=teacher, distill=KdConfig())
    with pytest.raises(InputError, match="teacher gives 5 classes, the model 3"):
        it.update(batch(), 0)


def test_mixing_takes_a_batch_of_any_size_and_does_not_touch_the_images() -> None:
    it = updater(linear(), mixup=0.4, cutmix=1.0, label_smoothing=0.1)
    for count in (1, 5, 6):
        sample = batch(count)
        images, labels = sample.inputs, sample.targets
        before = images.clone()
        assert torch.isfinite(it.update(Batch(images, labels), count))
        assert torch.equal(images, before)


def test_a_model_with_auxiliary_outputs_learns_from_the_first() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = linear()

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.main(images), torch.zeros(1)

    assert torch.equal(updater(Two()).update(batch(), 0), updater(linear()).update(batch(), 0))


def test_bf16_computes_in_bf16_and_keeps_float_weights() -> None:
    model, seen = linear(), []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    it = updater(model, precision="bf16")
    assert it.update(batch(), 0).dtype == torch.float32
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_16_bits_on_the_cpu_are_refused() -> None:
    with pytest.raises(InputError, match="needs a GPU"):
        updater(linear(), precision="16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamww"}, "did you mean 'adamw'"),
        ({"schedule": "step"}, "needs decay_epochs"),
        ({"epochs": 2, "warmup_epochs": 3}, "more than epochs"),
        ({"keep": "best", "evaluate_every": 0}, "evaluate_every of at least 1"),
        ({"lr": 0}, "greater than 0"),
        ({"ema": 1.0}, "less than 1"),
        ({"learning_rate": 1}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


class WithAuxiliaryHead(nn.Module):
    """Two heads in training; remembers how far it was told the training is."""

    auxiliary_weight = 0.4

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = nn.Linear(12, 3), nn.Linear(12, 3)
        self.told: list[float] = []

    def set_training_progress(self, fraction: float) -> None:
        self.told.append(fraction)

    def forward(self, images: Tensor) -> Any:
        features = images.flatten(1)
        return (self.head(features), self.auxiliary(features)) if self.training else self.head(features)


def test_an_auxiliary_head_joins_the_loss_with_its_weight() -> None:
    model = WithAuxiliaryHead()
    sample = batch()
    images, labels = sample.inputs, sample.targets
    features = images.flatten(1)
    expected = F.cross_entropy(model.head(features), labels) + 0.4 * F.cross_entropy(model.auxiliary(features), labels)
    assert torch.allclose(updater(model).update(Batch(images, labels), 0), expected)


def test_modules_are_told_how_much_of_the_training_is_done() -> None:
    model = WithAuxiliaryHead()
    it = updater(model, batches=4, epochs=2)
    for update in range(8):
        it.update(batch(), update)
    assert model.told == [update / 8 for update in range(8)]


class Outputs(nn.Module):
    """Gives what `wrap` makes of the logits, in training and evaluation alike."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.main, self.wrap = linear(), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.main(images))


@pytest.mark.parametrize(
    ("wrap", "weights"),
    [
        (lambda logits: GoogLeNetOutputs(logits, 2 * logits, 3 * logits), {2: 0.3, 3: 0.3}),
        (lambda logits: InceptionOutputs(logits, 2 * logits), {2: 0.4}),
        (lambda logits: [logits, 2 * logits], {}),
    ],
)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_heads_of_torchvision_join_the_loss_as_published(wrap: Any, weights: dict[int, float], precision: str) -> None:
    sample = batch()
    images, labels = sample.inputs, sample.targets
    logits = linear()(images)
    expected = F.cross_entropy(logits, labels)
    expected = expected + sum(share * F.cross_entropy(by * logits, labels) for by, share in weights.items())
    found = updater(Outputs(wrap), precision=precision).update(Batch(images, labels), 0)
    assert torch.allclose(found, expected, rtol=1e-6 if precision == "32" else 2e-2)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda logits: {"out": logits, "aux": logits}, "returns a dict with the keys out, aux; .*logits"),
        (lambda logits: None, "returns a NoneType; .*logits"),
        (lambda logits: logits[:, :, None], r"returns \(6, 3, 1\); .*logits"),
    ],
)
def test_a_model_that_gives_no_logits_is_one_sentence(wrap: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        updater(Outputs(wrap)).update(batch(), 0)


def test_one_image_at_a_time_with_batch_norm_is_one_sentence() -> None:
    vector = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3))
    with pytest.raises(InputError, match=r"data\.batch_size: batch norm .*got 1 image; allowed: 2 and up"):
        updater(vector).update(batch(1), 0)
    maps = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    assert torch.isfinite(updater(maps).update(batch(1), 0))  # four pixels have a variance


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda loss: loss.expand(3),
            r"Strange\.loss gave a tensor torch.float32 \(3,\); allowed: a tensor of one number",
        ),
        (lambda loss: loss.item(), r"Strange\.loss gave 1\.\d+; allowed"),
        (lambda loss: None, r"Strange\.loss gave None; allowed"),
        (lambda loss: {"loss": loss}, r"Strange\.loss gave \{'loss': tensor"),
        (
            lambda loss: loss.detach(),
            r"nothing would be learned from what Strange\.loss gives: no parameter has a grad",
        ),
    ],
)
def test_a_step_that_gives_no_loss_to_learn_from_is_one_sentence(change: Any, words: str) -> None:
    class Strange(Supervised):
        def loss(self, model: nn.Module, batch: Batch, update: int) -> Any:
            return change(super().loss(model, batch, update))

    data: Any = SimpleNamespace(task=TASK, train=[batch()])
    step = Strange(StepContext(TrainConfig(), data))
    with pytest.raises(InputError, match=words):
        Updater(linear(), step, TrainConfig(), device="cpu", seed=0, batches=1).update(batch(), 0)


def test_a_step_config_that_makes_no_step_is_one_sentence() -> None:
    class NoStep(SupervisedConfig):
        def make(self, context: StepContext) -> Any:
            return None

    with pytest.raises(InputError, match="step: supervised makes None; allowed: a TrainingStep"):
        TrainConfig(step=NoStep()).make_step(StepContext(TrainConfig(), SimpleNamespace()), seed=0)  # type: ignore[arg-type]
