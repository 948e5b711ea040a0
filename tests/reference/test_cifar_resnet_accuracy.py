"""The published CIFAR ResNets through our own data set, loader and evaluator, on the first 100 real images of a class.

On all 5,000 test images they have 91.50, 91.82 and 93.70 %.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.bundle import open_model
from evaluators.datasets.npz import NpzConfig
from evaluators.tasks.evaluation import evaluate
from spaces.zoo import ModelConfig

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # these weights were trained with it


def top1(weights: str, npz: Path, model: ModelConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> float:
    data = NpzConfig(name="npz", path=str(npz), mean=mean, std=std, limit_test=1000)
    opened = open_model(model.model_copy(update={"checkpoint": weights}), data)
    assert opened.data and opened.data.test and opened.load_report
    assert not opened.load_report.missing and not opened.load_report.unexpected and not opened.load_report.replaced
    found = evaluate(opened.bundle.model, opened.data.test, opened.data.task)["top1"]
    assert found is not None
    return found


def test_resnet20(shared_data: Path, cifar10_npz: Path) -> None:
    weights = str(shared_data / "weights/cifar10_resnet/resnet20.safetensors")
    model = ModelConfig(source="builtin", name="cifar_resnet20")
    assert top1(weights, cifar10_npz, model, **IMAGENET) == pytest.approx(91.5)


def test_resnet20_with_projections(shared_data: Path, cifar10_npz: Path) -> None:
    weights = str(shared_data / "weights/cifar10_resnet20_pruned/resnet20_dense.safetensors")
    model = ModelConfig(source="builtin", name="cifar_resnet20", kwargs={"shortcut": "B"})
    assert top1(weights, cifar10_npz, model, (0.5,), (0.5,)) == pytest.approx(92.4)


def test_resnet56(shared_data: Path, cifar10_npz: Path) -> None:
    weights = str(shared_data / "weights/cifar10_resnet/resnet56.safetensors")
    model = ModelConfig(source="builtin", name="cifar_resnet56")
    assert top1(weights, cifar10_npz, model, **IMAGENET) == pytest.approx(93.0)
