"""Candidates cut out of a trained supernet and judged with the weights they inherit."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from compress.core.batch_norm import recalibrate
from compress.core.environment import on_device
from compress.core.errors import Diverged, InputError
from compress.core.progress import hushed
from evaluators.candidates.evaluator import Evaluator, EvaluatorBase, EvaluatorContext, Metrics, Report, evaluators
from evaluators.candidates.networks import accuracy, accuracy_names, candidate_data, costs, data_for, diverged
from spaces.architecture import Architecture
from spaces.checkpoint import refuse_infinite
from spaces.checkpoint_file import read_safetensors
from spaces.supernet import Supernet

KEY = "search.evaluator.weights"


@evaluators.register("supernet")
class SupernetEvaluatorConfig(EvaluatorBase):
    """Judge candidates by the accuracy of the weights that they inherit from a supernet, without training them.

    Train the supernet without the images that are held out here: the same data, holdout and seed name the same ones.
    """

    kind: Literal["supernet"] = "supernet"
    weights: str | None = Field(
        None, description="a .safetensors file or a folder with weights.safetensors; random: initial weights, for tests"
    )
    recalibrate: int = Field(20, ge=0, description="training batches that estimate a candidate's batch norms anew")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images that candidates are judged on")

    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError without data, a supernet or weights that fit it."""
        return SupernetEvaluator(self, context)


class SupernetEvaluator(Evaluator):
    """Cuts candidates out of one supernet."""

    def __init__(self, config: SupernetEvaluatorConfig, context: EvaluatorContext) -> None:
        self.config, self.context = config, context
        self.data = candidate_data(context, config.holdout, config.kind)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(context.seed)
            self.supernet = context.space.supernet(self.data.task)
        _load(self.supernet, config.weights)
        self.supernet.eval()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's, params, macs."""
        return accuracy_names(self.data)

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Return the metrics of `arch` with inherited weights; outputs that are not finite count as the worst."""
        space, device = self.context.space, self.context.device
        arch = space.canonical(arch)  # other encodings of the same network may inherit other weights
        data = data_for(space, arch, self.data)
        assert data.train is not None
        with torch.random.fork_rng(devices=[]):
            model = self.supernet.extract(arch)
        try:
            with hushed(), on_device(model, device):
                recalibrate(model, data.train.epoch(0), self.config.recalibrate, device, data.task.forward)
                found = accuracy(model, data, device)
        except Diverged as error:
            found = diverged(data, error)
        return found | costs(space, arch, data)


def _load(supernet: Supernet, weights: str | None) -> None:
    """Load the weights that the recipe names; raises InputError for none, damaged ones, or another supernet's."""
    if weights is None:
        raise InputError(
            f"{KEY}: missing; an untrained supernet ranks candidates at random: name its trained weights "
            "(or say weights: random, if that is meant)"
        )
    if weights == "random":
        return
    path = Path(weights)
    state = read_safetensors(path / "weights.safetensors" if path.is_dir() else path, KEY)
    refuse_infinite(supernet, state, weights, KEY)
    try:
        supernet.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{KEY}: {weights!r} does not fit the supernet of this space and data: {reason}") from error
