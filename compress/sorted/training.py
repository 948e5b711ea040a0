"""Sorted training of a bundle: find its sub-networks, order its units, train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.sorted.config import SortConfig
from compress.sorted.members import members_of
from compress.sorted.network import NestedNetwork
from compress.sorted.order import order_units
from compress.sorted.space import NestedSpace
from compress.sorted.step import SortedStep
from compress.training.estimate import seconds_by
from compress.training.position import FitResult
from compress.training.step import StepContext
from compress.training.supervised import Supervised
from compress.training.trainer import Trainer, training_split
from evaluators.datasets import Data
from evaluators.datasets.batch import Batch
from spaces.architecture import Architecture


@dataclass(frozen=True)
class Nested:
    """A bundle's network with its sub-networks, before or after training.

    Attributes:
        network: the bundle's module, which is ordered and trained in place.
        members: the family; see `members_of`.
    """

    network: NestedNetwork
    members: tuple[Architecture, ...]


@dataclass(frozen=True)
class Surroundings:
    """What sorted training uses besides the bundle; `directory` takes checkpoints, `log` an event per epoch."""

    data: Data
    device: str
    seed: int
    directory: Path | None = None
    resume: bool = False
    log: Callable[[dict[str, Any]], None] | None = None


def nested(bundle: Bundle, config: SortConfig, seed: int) -> Nested:
    """Return the sub-networks that `config` asks for.

    Raises:
        InputError: the model cannot be narrowed, or the family is not one.
    """
    if bundle.masks:
        raise InputError(
            "sort: the model has single weights removed (prune.kind weights), which nested widths would move; "
            "allowed are dense models and those of prune.kind structure"
        )
    network = NestedNetwork(NestedSpace(bundle, config.space()))
    return Nested(network, members_of(network, config.members, seed))


def check_sorting(bundle: Bundle, config: SortConfig) -> None:
    """Raise InputError where the model has no such sub-networks, or they cannot be drawn as the config says."""
    found = nested(bundle, config, seed=0)
    config.sampling.drawer(found.members, _macs(found), config.per_update)


def sort(bundle: Bundle, found: Nested, config: SortConfig, around: Surroundings) -> FitResult:
    """Order the units of the bundle's model and train all members, in place; see `Trainer.run` for what is raised."""
    network, data = found.network, around.data
    with on_device(network, around.device):
        network.activate(network.full)
        order_units(network, config.order, bundle.example_inputs(2), _batches(data, config.calibration_batches))
    trainer = Trainer(
        network,
        _step(found, config, data, around.seed),
        data,
        config,
        device=around.device,
        seed=around.seed,
        checkpoint_dir=around.directory,
        log=around.log,
        label="sorted training",
    )
    return trainer.run(around.resume)


def estimate(bundle: Bundle, config: SortConfig, data: Data, device: str, evaluation: float) -> float:
    """Return how many seconds sorted training and the evaluation of all members will take.

    `evaluation` is the time of one of the whole network.
    """
    found = nested(bundle, config, seed=0)
    macs = _macs(found)
    seconds = seconds_by(_step(found, config, data, seed=0), found.network, data, config, device)
    found.network.activate(found.network.full)
    return seconds + evaluation * sum(macs) / max(macs)


def _step(found: Nested, config: SortConfig, data: Data, seed: int) -> SortedStep:
    return SortedStep(
        learning=Supervised(StepContext(config, data)),
        draw=config.sampling.drawer(found.members, _macs(found), config.per_update),
        spend=config.spend,
        seed=seed,
        distill=config.distill,
    )


def _macs(found: Nested) -> list[int]:
    return [found.network.cost(arch)["macs"] for arch in found.members]


def _batches(data: Data, count: int) -> Callable[[], Iterator[Batch]]:
    train = training_split(data)
    return lambda: islice(train.epoch(0), count)
