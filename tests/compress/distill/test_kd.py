from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from compress.distill.finetune import FinetuneConfig
from compress.distill.losses import DistillConfig, losses
from compress.distill.losses.kd import KdConfig, kd_loss


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))


def test_kd_is_temperature_squared_times_the_divergence() -> None:
    student, teacher, temperature = logits(0), logits(1), 4.0
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(kd_loss(student, teacher, temperature), expected, rtol=1e-5)


def test_kd_is_zero_for_equal_logits_and_blind_to_a_shift() -> None:
    assert float(kd_loss(logits(0), logits(0), 2.0)) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(kd_loss(logits(0), logits(1), 2.0), kd_loss(logits(0) + 5, logits(1) - 3, 2.0), rtol=1e-4)


def test_the_gradient_approaches_logit_matching_at_high_temperature() -> None:
    """Hinton et al., section 2.1: (z - v) / N for logits of zero mean, N classes, averaged over the batch here."""
    student, teacher = logits(0).double(), logits(1).double()
    student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
    student.requires_grad_()
    kd_loss(student, teacher, 1e3).backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 7 / 5, rtol=0.02, atol=1e-4)


def test_weight_shares_the_loss_between_teacher_and_labels() -> None:
    for weight in (0.0, 0.25, 1.0):
        config = KdConfig(temperature=2.0, weight=weight)
        assert torch.allclose(config.term(logits(0), logits(1)), weight * kd_loss(logits(0), logits(1), 2.0))
        assert config.label_share == 1 - weight


def test_a_recipe_names_its_loss_or_gets_kd() -> None:
    assert "kd" in losses.names()
    assert FinetuneConfig(distill={"temperature": 2.0}).distill == KdConfig(temperature=2.0)
    again = FinetuneConfig.model_validate(FinetuneConfig(distill={"loss": "kd"}).model_dump(mode="json"))
    assert again.distill == KdConfig()
    for wrong in ({"loss": "nearest"}, {"temperature": 0}, {"weight": 1.5}, {"heat": 1}):
        with pytest.raises(ValidationError):
            FinetuneConfig(distill=wrong)
    assert TypeAdapter(DistillConfig).json_schema()["$defs"]["KdConfig"]["properties"]["temperature"]["default"] == 4.0
