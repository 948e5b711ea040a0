from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError
from evaluators.datasets import Preprocessing
from evaluators.datasets.loaders import ArrayLoader
from evaluators.tasks import DEFAULT, Task
from evaluators.tasks.evaluation import evaluate


def loader(count: int, classes: int, batch_size: int = 4) -> ArrayLoader:
    """Images whose pixels all hold the sample's number."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 1)
    plain = Preprocessing((1, 2, 2), (0.0,), (1 / 255,))
    return ArrayLoader(
        images, torch.arange(count) % classes, preprocessing=plain, batch_size=batch_size, augment=None, seed=0
    )


def on(count: int, classes: int) -> tuple[ArrayLoader, Task]:
    return loader(count, classes), DEFAULT.bind(classes, (1, 2, 2))


def scores(classes: int, shift: int) -> object:
    """Return a callable whose highest logit is the label plus `shift`, with lower ones going down from there."""

    def model(images: Tensor) -> Tensor:
        label = images[:, 0, 0, 0].round().long() % classes
        rank = (torch.arange(classes) - label.unsqueeze(1) - shift) % classes
        return -rank.float()

    return model


def test_counts_hits_over_uneven_batches() -> None:
    right = evaluate(scores(10, 0), *on(10, 10))  # type: ignore[arg-type]
    assert right["top1"] == 100 and right["top5"] == 100
    late = evaluate(scores(10, -4), *on(10, 10))  # type: ignore[arg-type]
    assert late["top1"] == 0 and late["top5"] == 100
    assert evaluate(scores(10, -5), *on(10, 10))["top5"] == 0  # type: ignore[arg-type]


def test_loss_is_the_mean_cross_entropy() -> None:
    found = evaluate(lambda images: torch.zeros(len(images), 8), *on(11, 8))
    assert found["loss"] == pytest.approx(math.log(8))


def test_top5_is_not_measured_below_six_classes() -> None:
    assert evaluate(scores(5, 0), *on(10, 5))["top5"] is None  # type: ignore[arg-type]
    assert evaluate(scores(6, 0), *on(10, 6))["top5"] == 100  # type: ignore[arg-type]


def test_a_module_is_evaluated_in_eval_mode_and_put_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 6))
    model[1].eval()
    one, other = evaluate(model, *on(9, 6)), evaluate(model, *on(9, 6))
    assert one == other
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_first_of_several_outputs_counts() -> None:
    model: Any = scores(10, 0)
    assert evaluate(lambda images: (model(images), None), *on(10, 10))["top1"] == 100
    with pytest.raises(InputError, match=r"dict with the keys out; .*logits"):
        evaluate(lambda images: {"out": model(images)}, *on(10, 10))


def test_a_last_batch_of_one_image_without_running_statistics_is_one_sentence() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 6))
    assert evaluate(model, *on(8, 6))["loss"]
    with pytest.raises(InputError, match=r"data\.eval_batch_size: batch norm .*got 1 image"):
        evaluate(model, *on(9, 6))


def test_another_winner_is_a_disagreement_unless_it_is_as_good() -> None:
    task = DEFAULT.bind(3, ())
    expected, output = torch.tensor([[1.0, 3.0, 2.99]]), torch.tensor([[1.0, 2.99, 3.0]])
    assert task.disagreement("logits", output, expected, within=0.02) is None
    assert task.disagreement("logits", output, expected, within=0.005) == "another class wins than in the model"
    assert task.disagreement("boxes", output, expected, within=0.005) is None


def test_refuses_logits_that_say_nothing() -> None:
    with pytest.raises(CompressError, match="NaN"):
        evaluate(lambda images: torch.full((len(images), 8), torch.nan), *on(4, 8))
    with pytest.raises(InputError, match="label 3"):
        evaluate(lambda images: torch.zeros(len(images), 2), *on(4, 4))
    with pytest.raises(InputError, match="logits"):
        evaluate(lambda images: images, *on(4, 4))
