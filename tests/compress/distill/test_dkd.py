"""Decoupled distillation: its identity with plain distillation, its formula, its warm-up, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_training import tiny_data, tiny_model
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.finetune import FinetuneConfig
from compress.distill.layers import Seen
from compress.distill.losses import Guide, Sides
from compress.distill.losses.dkd import DkdConfig, decoupled
from compress.distill.losses.kd import kd_loss
from compress.testing.losses import check_loss
from compress.training.fit import fit
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT
from search.supernets.paths import Sandwich

TARGETS = torch.tensor([0, 6, 3, 2, 5])


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def term(config: DkdConfig, update: int = 0, targets: Tensor = TARGETS, **weights: float) -> Tensor:
    """Return the loss of teachers by their weights, `logits(1)` and so on, with two updates per epoch."""
    guides = [Guide(name, None, weight) for name, weight in (weights or {"dense": 1.0}).items()]
    sides = Sides(tiny_model(), guides, DEFAULT.bind(7, (3, 8, 8)), list, updates_per_epoch=2)  # type: ignore[arg-type]
    seen = {guide.name: Seen(logits(number), None) for number, guide in enumerate(guides, 1)}
    return config.make(sides)(Seen(logits(0), None), seen, Batch(torch.zeros(5, 1), targets), update)


def test_with_the_others_weighted_by_their_probability_it_is_plain_distillation() -> None:
    for temperature in (1.0, 4.0):
        right, others = decoupled(logits(0), logits(1), TARGETS, temperature)
        left = 1 - (logits(1) / temperature).softmax(1).gather(1, TARGETS[:, None])[:, 0]
        wanted = kd_loss(logits(0), logits(1), temperature)
        assert torch.allclose((right + left * others).mean(), wanted, rtol=1e-12)


def test_both_parts_are_as_published() -> None:
    temperature, (student, teacher) = 2.0, (logits(0), logits(1))
    right, others = decoupled(student, teacher, TARGETS, temperature)
    for row, target in enumerate(TARGETS.tolist()):
        p, q = ((each[row] / temperature).softmax(0) for each in (teacher, student))
        binary = p[target] * (p[target] / q[target]).log()
        binary += (1 - p[target]) * ((1 - p[target]) / (1 - q[target])).log()
        rest = torch.arange(7) != target
        p, q = p[rest] / p[rest].sum(), q[rest] / q[rest].sum()
        assert right[row] == pytest.approx(float(temperature**2 * binary), rel=1e-9)
        assert others[row] == pytest.approx(float(temperature**2 * (p * (p / q).log()).sum()), rel=1e-9)


def test_sure_teachers_give_finite_gradients() -> None:
    """In float32 one minus a probability of 1 is 0."""
    student, teacher = (200 * torch.eye(3) + shift for shift in (torch.tensor([[1.0], [2.0], [3.0]]), 0.0))
    student.requires_grad_()
    right, others = decoupled(student, teacher.roll(1, 0), torch.arange(3), 1.0)
    (right + others).sum().backward()
    assert bool(torch.isfinite(student.grad).all()) and bool((right > 100).all())  # type: ignore[arg-type]


def test_teachers_are_averaged_and_the_labels_keep_their_loss() -> None:
    config = DkdConfig(alpha=0.5, beta=2.0, temperature=2.0)
    one, other = (
        0.5 * right.mean() + 2.0 * others.mean()
        for right, others in (decoupled(logits(0), logits(seed), TARGETS, 2.0) for seed in (1, 2))
    )
    assert torch.allclose(term(config), one)
    assert torch.allclose(term(config, one=3.0, other=1.0), 0.75 * one + 0.25 * other)
    assert config.label_share == 1.0
    check_loss(config)


def test_the_term_grows_by_the_epoch_while_it_warms_up() -> None:
    whole = term(DkdConfig())
    shares = [float(term(DkdConfig(warmup_epochs=4), update) / whole) for update in range(12)]
    assert shares == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1, 1, 1, 1])


def test_in_a_training_it_is_added_to_the_loss_on_the_labels() -> None:
    data = tiny_data(count=6, batch=6)
    batch = Batch(data.train.images, data.train.labels)
    model, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)) for _ in range(2))
    right, others = decoupled(model(batch.inputs), teacher(batch.inputs), batch.targets, 1.0)
    wanted = right.mean() + 8 * others.mean() + F.cross_entropy(model(batch.inputs), batch.targets)
    config = FinetuneConfig(epochs=1, distill={"loss": "dkd", "temperature": 1.0})
    (event,) = fit(model, data, config, teacher=teacher).history
    assert event["loss"] == pytest.approx(float(wanted.detach()), rel=1e-5)
    told = [event[name] for name in ("dkd_right", "dkd_others")]
    assert told == pytest.approx([each.mean().item() for each in (right, others)], rel=1e-4)


def test_what_has_no_right_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"^dkd needs the right class of every image.*mixup"):
        term(DkdConfig(), targets=torch.rand(5, 7))
    mixed = FinetuneConfig(epochs=1, mixup=0.2, distill={"loss": "dkd"})
    with pytest.raises(InputError, match="dkd needs the right class"):
        fit(tiny_model(), tiny_data(), mixed, teacher=tiny_model())
    with pytest.raises(InputError, match="the model has one output"):
        DkdConfig().make(Sides(tiny_model(), [Guide("dense", None)], DEFAULT.bind(1, (3, 8, 8)), list))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dkd takes more than outputs; allowed here: cosine, kd"):
        Sandwich(distill={"loss": "dkd"})
