"""What a correct MEAL V2 has to show: its gradients, its discriminator, and what it leaves alone."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import tiny_data, tiny_model
from torch import Tensor, nn

from compress.distill.distilled import DistilledConfig
from compress.distill.finetune import DistillStageConfig, FinetuneConfig
from compress.distill.layers import Seen
from compress.distill.losses import Guide, Sides
from compress.distill.losses.meal_v2 import MealV2Config, MealV2Loss, discriminator
from compress.testing.losses import check_loss
from compress.testing.steps import check_training_step
from compress.training.fit import fit
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT

CLASSES, ROWS = 16, 5
BOUND = math.log(2) / 2


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(mode: str, **weights: float) -> MealV2Loss:
    guides = [Guide(name, None, weight) for name, weight in weights.items()]
    sides = Sides(tiny_model(), guides, DEFAULT.bind(CLASSES, (3, 8, 8)), list)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        term = MealV2Config.model_validate({"discriminator": mode}).make(sides)
    assert isinstance(term, MealV2Loss)
    return term.double()


def value(term: MealV2Loss, student: Tensor, *teachers: Tensor) -> Tensor:
    seen = {name: Seen(each, None) for name, each in zip(term.shares, teachers, strict=True)}
    return term(Seen(student, None), seen, Batch(torch.zeros(ROWS, 1), None), 0)


def test_a_student_like_its_teacher_has_the_entropy_and_no_gradient() -> None:
    student = logits(0).requires_grad_()
    term = made("off", one=1.0)
    loss = value(term, student, logits(0))
    loss.backward()
    p = logits(0).softmax(1)
    assert loss.item() == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-12)
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-7
    assert float(term.parts["divergence"]) == pytest.approx(0, abs=1e-12)


def test_probabilities_are_averaged_by_the_weights_not_logits() -> None:
    student = logits(0).requires_grad_()
    loss = value(made("off", one=3.0, other=1.0), student, logits(1), logits(2))
    loss.backward()
    mean = 0.75 * logits(1).softmax(1) + 0.25 * logits(2).softmax(1)
    assert loss.item() == pytest.approx(float(-(mean * logits(0).log_softmax(1)).sum(1).mean()), rel=1e-12)
    assert torch.allclose(student.grad, (logits(0).softmax(1) - mean) / ROWS, rtol=0, atol=1e-12)  # type: ignore[arg-type]
    of_mean_logits = (0.75 * logits(1) + 0.25 * logits(2)).softmax(1)
    assert float((mean - of_mean_logits).abs().max()) > 0.1


def test_the_discriminator_has_the_published_size() -> None:
    assert sum(each.numel() for each in discriminator(1000).parameters()) == 127_047
    assert [each.out_features for each in discriminator(1000) if isinstance(each, nn.Linear)] == [125, 15, 2]
    assert [each.out_features for each in discriminator(10) if isinstance(each, nn.Linear)] == [8, 8, 2]
    assert isinstance(discriminator(10)[-1], nn.ReLU)


def test_its_loss_begins_at_ln_2_and_stays_above_half_of_it() -> None:
    term = made("repo", one=1.0)
    assert term.recognised(0.01 * logits(0), 0.01 * logits(1)).item() == pytest.approx(math.log(2), abs=0.05)
    apart = [torch.eye(CLASSES, dtype=torch.float64)[[0] * ROWS] * sign for sign in (50, -50)]
    optimizer = torch.optim.Adam(term.parameters(), 0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = term.recognised(*apart)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) >= BOUND
    assert losses[-1] < 0.6  # it does tell them apart
    perfect = torch.tensor([[1e3, 0.0]] * ROWS + [[0.0, 1e3]] * ROWS, dtype=torch.float64)
    term.discriminator = nn.Sequential(Fixed(perfect), nn.ReLU())
    assert float(term.recognised(*apart)) == pytest.approx(BOUND, rel=1e-9)


class Fixed(nn.Module):
    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scores


def test_who_lowers_the_loss_of_the_discriminator() -> None:
    """repo: the student too, as the authors' code has it; adversarial: it raises what the discriminator lowers."""
    losses, gradients, own = {}, {}, {}
    for mode in ("off", "repo", "adversarial"):
        student, term = logits(0).requires_grad_(), made(mode, one=1.0)
        losses[mode] = value(term, student, logits(1))
        gradients[mode], *own[mode] = torch.autograd.grad(losses[mode], [student, *term.parameters()])
    layers, student = made("repo", one=1.0).discriminator, logits(0).requires_grad_()
    assert layers is not None
    wanted = torch.tensor([[1.0, 0.0]] * ROWS + [[0.0, 1.0]] * ROWS, dtype=torch.float64)
    recognised = F.binary_cross_entropy_with_logits(layers(torch.cat([student, logits(1)])), wanted)
    (pull,) = torch.autograd.grad(recognised, student)
    assert float(pull.abs().max()) > 1e-4
    assert torch.allclose(losses["repo"], losses["off"] + recognised) and losses["repo"] == losses["adversarial"]
    assert torch.allclose(gradients["repo"] - gradients["off"], pull)
    assert torch.allclose(gradients["adversarial"] - gradients["off"], -pull)
    assert not own["off"] and all(map(torch.equal, own["repo"], own["adversarial"]))


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in model.state_dict().values())).hexdigest()


def test_teachers_are_unchanged_and_no_label_is_read() -> None:
    """Also where the student has the teacher's batch norms, and labels are shuffled."""
    students, before = [], digest(tiny_model())
    for shift in (0, 1):
        model, teacher, data = tiny_model(), tiny_model().train(), tiny_data()
        data.train.labels = (data.train.labels + shift) % 4
        nn.init.normal_(model[-1].weight, generator=torch.Generator().manual_seed(1))
        config = FinetuneConfig(epochs=1, lr=1e-2, weight_decay=0, distill={"loss": "meal_v2"})
        (event,) = fit(model, data, config, teacher=teacher).history
        assert digest(teacher) == before and not any(each.training for each in teacher.modules())
        assert event["loss"] == pytest.approx(event["meal_v2_loss"], rel=1e-6)
        assert event["loss"] > event["meal_v2_divergence"] > 0
        assert BOUND <= event["meal_v2_discriminator"] < 1
        assert "label_loss" not in event
        students.append(digest(model))
    assert students[0] == students[1] != before


@pytest.mark.parametrize("mode", ["off", "repo", "adversarial"])
def test_a_loss_like_others(mode: str) -> None:
    config = MealV2Config.model_validate({"discriminator": mode})
    assert config.label_share == 0
    check_loss(config)


def test_the_discriminator_trains_by_the_run_s_settings_and_is_resumed() -> None:
    """As published: the same learning rate, and no weight decay where the recipe sets it to 0."""
    loss: dict[str, Any] = {"loss": "meal_v2"}
    check_training_step(DistilledConfig(loss=[loss, {"loss": "kd"}]))
    config = DistillStageConfig(epochs=1, optimizer="momentum", lr=0.01, weight_decay=0, warmup_epochs=0, loss=loss)
    step = config.make_step(StepContext(config, tiny_data(), tiny_model()), seed=0)
    updater = Updater(tiny_model(), step, config, device="cpu", seed=0, batches=6)
    groups = {id(each): group for group in updater.optimizer.param_groups for each in group["params"]}
    ours = [groups[id(each)] for each in step.parameters()]
    assert len(ours) == 6 and {(group["lr"], group["weight_decay"]) for group in ours} == {(0.01, 0)}
