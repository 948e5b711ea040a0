"""What a correct CKA has to show, which layers go with which, and that a guide of no weight changes nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_training import equal, tiny_data
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.finetune import DistillStageConfig, FinetuneConfig
from compress.distill.layers import Watched
from compress.distill.losses import Guide, Sides
from compress.distill.losses.guidance import GuidanceConfig, GuidanceLoss, cka, hsic, similarities
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT

TASK = DEFAULT.bind(4, (3, 8, 8))


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alike(one: Tensor, other: Tensor, estimator: Any = "biased") -> float:
    return float(cka(similarities(one), similarities(other), estimator))


@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_cka_is_symmetric_and_sees_neither_rotation_scale_nor_shift(estimator: str) -> None:
    one, other = gaussian(0, 64, 32), gaussian(0, 64, 32) + gaussian(1, 64, 32)
    turned, _ = torch.linalg.qr(gaussian(2, 32, 32))
    assert alike(one, one, estimator) == pytest.approx(1, abs=1e-5)
    for scale in (-3.0, 1e-12, 1e12):
        moved = scale * (one @ turned) + abs(scale) * 10 * gaussian(3, 32)
        assert alike(one, moved, estimator) == pytest.approx(1, abs=1e-5)
    assert alike(one, other, estimator) == alike(other, one, estimator)
    assert 0.1 < alike(one, other, estimator) < 0.9


@pytest.mark.parametrize(
    ("batch", "width", "expected", "draws"),
    [(64, 64, 0.5, 20), (64, 1024, 0.939, 1), (256, 1024, 0.799, 1), (256, 20_000, 0.987, 1), (32, 20_000, 0.998, 1)],
)
def test_the_bias_of_independent_features_is_the_known_one(batch: int, width: int, expected: float, draws: int) -> None:
    """It is width / (width + batch) on average; single draws at 64, 64 lie between 0.47 and 0.53."""
    pairs = [(gaussian(2 * draw, batch, width), gaussian(2 * draw + 1, batch, width)) for draw in range(draws)]
    assert sum(alike(*pair) for pair in pairs) / draws == pytest.approx(expected, abs=0.01)
    assert expected == pytest.approx(width / (width + batch), abs=0.003)
    if batch == 256:
        assert alike(*pairs[0], "debiased") == pytest.approx(0, abs=0.02)


def test_both_estimators_are_their_definitions() -> None:
    one, other = gaussian(0, 9, 5).double(), gaussian(1, 9, 7).double()
    grams = [(each - each.mean(0)) @ (each - each.mean(0)).T for each in (one, other)]
    centring = torch.eye(9, dtype=torch.float64) - 1 / 9
    plain = [each @ each.T for each in (one, other)]
    biased = torch.trace(plain[0] @ centring @ plain[1] @ centring) / 64
    assert float(hsic(*grams, "biased")) == pytest.approx(float(biased), rel=1e-9)
    off = [each - each.diagonal().diag() for each in plain]  # of features that are not centred
    ones = torch.ones(9, dtype=torch.float64)
    unbiased = torch.trace(off[0] @ off[1]) + (ones @ off[0] @ ones) * (ones @ off[1] @ ones) / 56
    unbiased = (unbiased - 2 * ones @ off[0] @ off[1] @ ones / 7) / 54
    assert float(hsic(*grams, "debiased")) == pytest.approx(float(unbiased), rel=1e-9)


@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_features_that_say_nothing_give_no_nan(estimator: Any) -> None:
    dead = torch.ones(8, 6, requires_grad=True)
    value = cka(similarities(dead), similarities(gaussian(0, 8, 6)), estimator)
    value.backward()
    assert float(value) == 0 and dead.grad is not None and bool(torch.isfinite(dead.grad).all())
    half = gaussian(0, 8, 6).mul(1e4).half()
    assert alike(half, half, estimator) == pytest.approx(1, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert cka(similarities(half), similarities(half), estimator).dtype == torch.float32


def network(depth: int, width: int = 8, seed: int = 0) -> nn.Module:
    """A convolutional network whose layers 0, 2, 4, ... are convolutions, behind them one linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = [3, *[width] * depth]
        pairs = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True)) for a, b in pairwise(widths)]
        layers = [layer for pair in pairs for layer in pair]
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))


def perceptron(depth: int) -> nn.Module:
    layers = [layer for _ in range(depth) for layer in (nn.LazyLinear(16), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.LazyLinear(4))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model(torch.zeros(2, 3, 8, 8))
    return model


def made(student: nn.Module, guide: nn.Module, batch: Batch | None = None, **options: Any) -> tuple[GuidanceLoss, Any]:
    given = batch or next(iter(tiny_data().train.epoch(0)))
    config = GuidanceConfig(**options)
    term = config.make(Sides(student, [Guide("guide", guide)], TASK, lambda: given.part(0, 2)))
    assert isinstance(term, GuidanceLoss)
    seen = Watched(student, term.student_layers, TASK).see(lambda: student(given.inputs))
    taught = Watched(guide, term.teacher_layers["guide"], TASK).see(lambda: guide(given.inputs))
    return term, lambda update=0: term(seen, {"guide": taught}, given, update)


def test_layers_of_the_guide_go_with_those_that_lie_as_far_along() -> None:
    term, _ = made(perceptron(9), network(4))  # with the pooling, the guide has five
    assert [one for one, _ in term.pairs] == ["1", "5", "9", "13", "17"]
    assert [other for _, other in term.pairs] == ["0", "2", "4", "6", "8"]
    term, _ = made(perceptron(2), network(4))  # none is dropped where two go to one layer
    assert term.pairs == [("1", "0"), ("1", "2"), ("1", "4"), ("3", "6"), ("3", "8")]
    term, _ = made(perceptron(3), network(2), guide_layers=["2"])
    assert term.pairs == [("5", "2")]


@pytest.mark.parametrize("estimator", ["biased", "debiased"])
def test_the_term_is_the_sum_over_the_pairs(estimator: Any) -> None:
    student, guide, images = perceptron(2), network(2), gaussian(3, 12, 3, 8, 8)
    options = {"layers": ["1", "3"], "guide_layers": ["0", "2"], "alpha": 0.5, "estimator": estimator}
    _, value = made(student, guide, Batch(images, images), **options)
    ours = [student[:n](images) for n in (2, 4)]  # type: ignore[index]
    theirs = [guide[0](images), guide[:3](images)]  # type: ignore[index]
    expected = sum(0.5 * (1 - alike(one, other, estimator)) for one, other in zip(ours, theirs, strict=True))
    loss = value()
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    _, other_value = made(student, guide, Batch(images, images), pool=True, **options)
    few = [torch.nn.functional.adaptive_avg_pool2d(each, 5) for each in theirs]
    expected = sum(0.5 * (1 - alike(one, other, estimator)) for one, other in zip(ours, few, strict=True))
    assert float(other_value().detach()) == pytest.approx(expected, abs=1e-5)


def trained(distill: dict[str, Any] | None, model: nn.Module, **more: Any) -> list[float]:
    """Train `model` for an epoch, with a batch norm and dropout, and return the losses."""
    config = FinetuneConfig(epochs=1, distill=distill, **more)
    step = config.make_step(StepContext(config, tiny_data(), network(3, seed=4)), seed=0)
    it = Updater(model, step, config, device="cpu", seed=0, batches=6)
    it.train()
    return [float(it.update(batch, number)) for number, batch in enumerate(tiny_data().train.epoch(0))]


def with_norm() -> nn.Module:
    return nn.Sequential(*list(network(1))[:1], nn.BatchNorm2d(8), nn.Dropout(0.3), *list(network(1))[1:])


def test_a_guide_of_no_weight_leaves_the_run_as_it_is() -> None:
    plain, guided, moved = with_norm(), with_norm(), with_norm()
    losses = trained(None, plain)
    assert trained({"loss": "guidance", "alpha": 0}, guided) == losses
    assert equal(plain, guided)
    assert trained({"loss": "guidance"}, moved) != losses


def test_guidance_ends_with_the_updates_that_it_is_for() -> None:
    plain, guided = trained(None, network(2)), trained({"loss": "guidance", "first_updates": 1}, network(2))
    assert guided[0] > plain[0] + 0.2
    assert guided[1:] == pytest.approx(plain[1:], abs=0.05)
    config = DistillStageConfig(epochs=1, loss={"loss": "guidance", "first_updates": 1})
    teacher = network(3, seed=4)
    calls: list[int] = []
    step = config.make_step(StepContext(config, tiny_data(), teacher), seed=0)
    it = Updater(network(2), step, config, device="cpu", seed=0, batches=6)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for number, batch in enumerate(tiny_data().train.epoch(0)):
        it.update(batch, number)
    assert len(calls) == 1  # nobody asks the guide afterwards
    assert set(step.figures()) == {"guidance_loss", "guidance_cka", "label_loss"}


def test_a_small_rest_is_left_out_and_small_batches_are_refused() -> None:
    _, value = made(network(2), network(3), Batch(gaussian(0, 3, 3, 8, 8), torch.arange(3)))
    assert float(value(5)) == 0
    with pytest.raises(InputError, match=r"guidance compares samples of a batch, at least 4; got a batch of 3"):
        value(0)


def test_an_untrained_guide_guides_at_half_precision_and_gets_no_gradient() -> None:
    model = network(2)
    for precision in ("32", "bf16"):
        losses = trained({"loss": "guidance", "pool": True}, model, precision=precision, channels_last=True)
        assert all(torch.isfinite(torch.tensor(losses)))
    guide = network(3)
    _, value = made(model, guide.requires_grad_(False))
    value().backward()
    assert all(each.grad is None for each in guide.parameters())
    assert not equal(model, network(2))
    with pytest.raises(InputError, match=r"guidance\.guide_layers: no layer of teacher guide matches 'stem'"):
        made(model, guide, guide_layers=["stem"])
    with pytest.raises(InputError, match=r"guidance\.layers: the model has no layer of a kind that is compared"):
        made(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 4)), guide)
