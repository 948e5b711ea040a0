"""Networks trained alone, to tell what scores with inherited weights are worth."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import Diverged, InputError
from compress.core.progress import hushed, say, track
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.candidates.evaluator import Metrics
from evaluators.candidates.networks import accuracy, build, costs, data_for, diverged, fingerprint, save_weights
from evaluators.datasets import Data
from search.supernets.rank_table import ArchitectureLog
from spaces.architecture import Architecture
from spaces.space import Space


@dataclass(frozen=True)
class Alone:
    """Trains networks of `space` on all training images, as the section `train` does; the test images judge them.

    Attributes:
        space: of the networks.
        data: the recipe's, nothing held out.
        config: how they are trained.
        device: such as "cpu" or "cuda:0".
        seed: of weights and batches.
        directory: where the weights of each are kept, and checkpoints of one that is under way.
    """

    space: Space
    data: Data
    config: TrainConfig
    device: str
    seed: int
    directory: Path

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is known of a trained network: the task's metrics, params, macs."""
        return (*(metric.name for metric in self.data.task.metrics), "params", "macs")

    def train(self, architectures: Sequence[Architecture], log: ArchitectureLog) -> None:
        """Train each of `architectures` that `log` lacks, and enter its metrics; a killed training goes on.

        Raises InputError where there are no images to train or to judge on.
        """
        if self.data.train is None or self.data.test is None:
            raise InputError("rank.against: needs training and test images, and the data have not both")
        missing = [arch for arch in architectures if arch not in log.found]
        if missing:
            say(f"rank: {len(missing)} network(s) to train alone, {self.config.epochs} epoch(s) each")
        for arch in track(missing, "training alone", len(missing)):
            log.add(arch, self._train(arch))

    def _train(self, arch: Architecture) -> Metrics:
        space, device = self.space, self.device
        name = fingerprint(space, arch, train=self.config.neutral(), seed=self.seed)
        checkpoints = self.directory / f"{name}-checkpoint"
        data = data_for(space, arch, self.data)
        model = build(space, arch, data, self.seed)
        try:
            with hushed():
                fit(
                    model,
                    data,
                    self.config,
                    device=device,
                    seed=self.seed,
                    checkpoint_dir=checkpoints,
                    resume=True,
                    label="training alone",
                )
                found = accuracy(model, data, device)
        except Diverged as error:
            found = diverged(data, error)
        else:
            save_weights(model, self.directory / f"{name}.safetensors", arch)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return found | costs(space, arch, data)
