"""Candidates judged with the weights that they inherit from a trained supernet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.core.batch_norm import recalibrate
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.progress import hushed
from evaluators.candidates.cache import JsonCache
from evaluators.candidates.evaluator import Evaluator, EvaluatorBase, EvaluatorContext, Metrics, Report, evaluators
from evaluators.candidates.networks import costs, data_for, fingerprint, save_weights
from evaluators.datasets import Data
from evaluators.tasks import TaskConfig
from search.supernets.trained import TrainedSupernet
from spaces.architecture import Architecture

KEY = "search.evaluator.weights"


@evaluators.register("supernet")
class SupernetEvaluatorConfig(EvaluatorBase):
    """Judge candidates by the weights that they inherit from a trained supernet, without training them.

    They are judged on the training images that were held out from the supernet's training. The supernet is the one
    that the same recipe trains (section `supernet`), or one of another run.
    """

    kind: Literal["supernet"] = "supernet"
    weights: str | None = Field(
        None, description="directory of a run that has trained a supernet; null: the section supernet of this recipe"
    )
    recalibrate: int = Field(20, ge=0, description="training batches that estimate a candidate's batch norms anew")
    inherit: bool = Field(False, description="the winner keeps the weights that it inherits, and is not drawn anew")

    def metrics_for(self, task: TaskConfig, sections: Mapping[str, Any]) -> Collection[str] | None:
        """Return those of the method, where the recipe trains the supernet."""
        found = sections.get("supernet")
        return None if found is None or self.weights is not None else found.method.metrics_for(task)

    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError without data, a supernet, or one of other data or another space."""
        return SupernetEvaluator(self, context)


class SupernetEvaluator(Evaluator):
    """Rates candidates by one trained supernet."""

    def __init__(self, config: SupernetEvaluatorConfig, context: EvaluatorContext) -> None:
        self.config, self.context = config, context
        if context.data is None:
            raise InputError("search.evaluator: kind supernet needs images; name a data set in data")
        path = Path(config.weights).expanduser() if config.weights is not None else context.supernet
        if path is None or (config.weights is None and not path.is_dir()):
            raise InputError(
                f"{KEY}: missing, and the recipe trains no supernet; name the directory of a run that has trained one, "
                "or give the recipe a section supernet"
            )
        self.trained = TrainedSupernet.load(path, KEY)
        self.trained.check_space(context.space, KEY)
        self.data = self.trained.split(context.data, KEY)
        # the same space, and what it remembers of architectures counts once
        self.trained.supernet.space = context.space
        self.rater = self.trained.method.rater(self.trained, self.trained.supernet, context.device, config.recalibrate)
        self.scores = JsonCache(context.directory / "supernet_scores.jsonl")
        self._sized: dict[int, Data] = {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """The method's (the task's, for most), params, macs."""
        return (*self.rater.metrics(self.data), "params", "macs")

    @property
    def digest(self) -> str:
        """The weights'."""
        return self.trained.digest

    def free(self, arch: Architecture) -> Metrics:
        """Return what needs no forward pass."""
        return self.rater.free(self.context.space.canonical(arch))

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Return the metrics of `arch` with inherited weights; what was rated before, by any process, is looked up."""
        space = self.context.space
        arch = space.canonical(arch)  # other encodings of the same network may inherit other weights
        data = self._data_for(arch)
        free = self.rater.free(arch)
        if set(free) != set(self.rater.metrics(data)):
            key = fingerprint(space, arch, weights=self.trained.digest, recalibrate=self.config.recalibrate)
            kept = self.scores.get(key)
            if kept is None:
                kept = self.rater.rate(arch, data)
                self.scores.put(key, kept)
            free |= kept
        return free | costs(space, arch, data)

    def weights_path(self, arch: Architecture, seed: int) -> Path | None:
        """Return where the weights are that `arch` inherits; with `inherit` they are cut out now."""
        if not self.config.inherit:
            return None
        space = self.context.space
        arch = space.canonical(arch)
        path = self.context.directory / f"{fingerprint(space, arch, weights=self.trained.digest)}.safetensors"
        if not path.is_file():
            self._cut_out(arch, path)
        return path

    def _data_for(self, arch: Architecture) -> Data:
        """Return the data at the size that `arch` works on: the same object for the same size."""
        size = self.context.space.input_size(arch, self.data.image_size)
        if size not in self._sized:
            self._sized[size] = data_for(self.context.space, arch, self.data)
        return self._sized[size]

    def _cut_out(self, arch: Architecture, path: Path) -> None:
        data, device = self._data_for(arch), self.context.device
        assert data.train is not None
        model = self.rater.holder(arch, data, self.trained.supernet).extract(arch)
        with hushed(), on_device(model, device):
            recalibrate(model, data.train.epoch(0), self.config.recalibrate, device, data.task.forward)
        save_weights(model, path, arch)
