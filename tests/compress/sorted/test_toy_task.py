"""The toy task of SortedNet: ten classes of small images, twelve sub-networks of a residual network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.sorted.config import SortConfig
from compress.sorted.rating import rate
from compress.sorted.training import Surroundings, nested, sort
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.datasets.batch import Batch
from evaluators.datasets.preprocessing import Preprocessing
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig

SHAPE, CLASSES, BATCH, UPDATES = (3, 8, 8), 10, 64, 320
TASK = DEFAULT.bind(CLASSES, SHAPE)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


class Network(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images: a pattern for each class, moved in the image, under noise."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(CLASSES, *SHAPE, generator=generator)
    generator.manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    moves = torch.randint(3, (count, 2), generator=generator).tolist()
    images = torch.stack(
        [patterns[label].roll(move, (1, 2)) for label, move in zip(labels, map(tuple, moves), strict=True)]
    )
    return images + torch.randn(count, *SHAPE, generator=generator), labels


@dataclass
class Loader:
    images: Tensor
    labels: Tensor
    batch_size: int = BATCH

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(self.batch_size)[start : len(self)]:
            yield Batch(self.images[rows], self.labels[rows], rows)

    def batches(self) -> Iterator[Batch]:
        yield from Batch(self.images, self.labels).split(500)


@dataclass
class Data:
    train: Any
    test: Any
    task: Any = TASK
    image_size: int = 8


@pytest.mark.slow
def test_all_sizes_of_one_sorted_training_work() -> None:
    data: Any = Data(Loader(*drawn(40 * BATCH, 1)), Loader(*drawn(1000, 2)))
    settings = {
        "epochs": UPDATES // 40, "optimizer": "momentum", "lr": 0.05, "weight_decay": 5e-4, "warmup_epochs": 0,
        "evaluate_every": 0,
    }  # fmt: skip
    config = SortConfig(**settings, by="model", sampling={"kind": "sandwich"}, per_update=4, data="split")
    found, full = {}, {}
    for kind in ("full only", "sorted"):
        torch.manual_seed(0)
        model = Network()
        bundle = Bundle(model, ModelConfig(name="toy"), TASK, Preprocessing.of_model({}, SHAPE))
        family = nested(bundle, config, 0)
        assert len(family.members) == 12
        if kind == "sorted":
            sort(bundle, family, config, Surroundings(data, "cpu", 0))
        else:
            fit(model, data, TrainConfig(**settings))
        rated = [member for member, _ in rate(family.network, family.members, data)]
        found[kind] = mean(float(each.metrics["top1"] or 0) for each in rated)
        full[kind] = float(rated[-1].metrics["top1"] or 0)
    assert found["sorted"] > found["full only"] + 25
    assert full["sorted"] > full["full only"] - 8
