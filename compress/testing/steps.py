"""What the Trainer relies on in a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from compress.training.config import TrainConfig
from compress.training.engine import Engine
from compress.training.step import StepConfig, StepContext
from compress.training.trainer import Trainer
from evaluators.datasets import Data, Preprocessing
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import ArrayLoader, Loader
from evaluators.tasks import DEFAULT

CLASSES, SHAPE, STOP = 4, (3, 8, 8), 5


class _Stopped(Exception):
    pass


class _Stopping:
    """A loader that fails before batch `STOP` of the run."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.batch_size, self.num_samples = loader.batch_size, loader.num_samples

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader.epoch(epoch, start), start + epoch * len(self)):
            if number == STOP:
                raise _Stopped
            yield batch

    def batches(self) -> Iterator[Batch]:
        return self.loader.batches()


def check_training_step(config: StepConfig, make_model: Callable[[], nn.Module] | None = None) -> None:
    """Train a small classifier for eight updates by the step of `config`, once at a stretch and once broken off.

    Args:
        config: the step's.
        make_model: gives a classifier of images (N, 3, 8, 8) into 4, where it has to be a certain one.

    Raises:
        AssertionError: a resumed run ends with other weights, the step holds the model or changes its teacher, or
            nothing was trained.
        InputError: its loss is no number, or nothing has a gradient.
    """
    make_model = make_model or _model
    data, teacher = _data(), _made(make_model, seed=1)
    untouched = copy.deepcopy(teacher)
    with TemporaryDirectory() as folder:
        whole, probe = (_trainer(config, data, teacher, Path(folder) / "whole", make_model) for _ in range(2))
        probe.step.prepare(probe.model, Engine("cpu"))
        shared = {id(p) for p in probe.model.parameters()} & {id(p) for p in probe.step.parameters()}
        assert not shared, "the step has parameters of the model: it gets the model in `loss`, and keeps none"
        whole.run()
        broken = Path(folder) / "broken"
        assert data.train is not None
        try:
            _trainer(config, replace(data, train=_Stopping(data.train)), teacher, broken, make_model).run()
        except _Stopped:
            pass
        resumed = _trainer(config, data, teacher, broken, make_model)
        resumed.run(resume=True)
    assert _same(teacher, untouched), "the teacher was changed: ask it through compress.training.step.Teacher"
    assert not _same(whole.model, _made(make_model)), (
        "the model is as it was: `loss` has no gradient, and ran no pass backward"
    )
    assert _same(whole.model, resumed.model) and _same(whole.step, resumed.step), (
        "a resumed run ends with other weights: the step has state outside of its parameters, buffers, `optimizers` "
        "and `get_extra_state`, or draws from a generator of its own"
    )


def _trainer(
    config: StepConfig, data: Data, teacher: nn.Module, directory: Path, make_model: Callable[[], nn.Module]
) -> Trainer:
    training = TrainConfig(epochs=2, lr=1e-2, checkpoint_seconds=0, evaluate_every=0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        step = config.make(StepContext(training, data, teacher))
    return Trainer(_made(make_model), step, data, training, checkpoint_dir=directory)


def _data() -> Data:
    generator = torch.Generator().manual_seed(0)
    channels, height, width = SHAPE
    images = torch.randint(0, 256, (32, height, width, channels), dtype=torch.uint8, generator=generator)
    preprocessing = Preprocessing(SHAPE, (0.5,) * channels, (0.5,) * channels)
    train = ArrayLoader(
        images, torch.arange(32) % CLASSES, preprocessing=preprocessing, batch_size=8, augment="flip", seed=0
    )
    return Data(DEFAULT.bind(CLASSES, SHAPE), preprocessing, train, None, [str(each) for each in range(CLASSES)])


def _made(make_model: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make_model()


def _model() -> nn.Module:
    convolution = [nn.Conv2d(SHAPE[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Dropout(0.2), nn.Linear(8, CLASSES))


def _same(one: nn.Module, other: nn.Module) -> bool:
    def equal(value: Any, again: Any) -> bool:
        return torch.equal(value, again) if isinstance(value, Tensor) else bool(value == again)

    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(equal(value, second[name]) for name, value in first.items())
