"""A training of a second: four classes of small images, and a model with something of everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT, Task


class TinyLoader:
    """Four separable classes of 8x8 images; the batches of an epoch follow from (seed, epoch)."""

    def __init__(self, count: int, batch: int, seed: int = 0, pause: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(7)
        patterns = torch.randn(4, 3, 8, 8, generator=generator)
        generator.manual_seed(seed)
        self.labels = torch.arange(count) % 4
        self.images = patterns[self.labels] + 0.5 * torch.randn(count, 3, 8, 8, generator=generator)
        self.batch_size, self.num_samples, self.seed, self.pause = batch, count, seed, pause

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        for rows in torch.randperm(len(self.labels), generator=generator).split(self.batch_size)[start:]:
            time.sleep(self.pause)
            yield Batch(self.images[rows], self.labels[rows], rows)

    def batches(self) -> Iterator[Batch]:
        yield from Batch(self.images, self.labels).split(self.batch_size)


TASK = DEFAULT.bind(4, (3, 8, 8))


@dataclass
class TinyData:
    train: Any
    test: Any
    task: Task = TASK


def tiny_data(count: int = 96, batch: int = 16, pause: float = 0.0) -> Any:
    return TinyData(TinyLoader(count, batch, pause=pause), TinyLoader(40, 20, seed=1))


class Versioned(nn.ReLU):
    """Asks what loads its state for its version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        assert metadata.get("version") == 2


def tiny_model() -> nn.Sequential:
    """Convolution, batch norm, dropout and a linear layer: something of everything a checkpoint must carry."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        features = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), Versioned(), nn.AdaptiveAvgPool2d(4)]
        return nn.Sequential(*features, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 4))


def tiny_masks(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=generator) > 0.55 for name, p in model.named_parameters() if p.ndim > 1}


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(
        torch.equal(value, second[name]) if isinstance(value, Tensor) else value == second[name]
        for name, value in first.items()
    )


def updates_done(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["position"]["update"]) if checkpoint.exists() else 0
