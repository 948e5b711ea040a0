"""Candidates cut out of a trained network and fine-tuned for a few updates, as NetAdapt judges its proposals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from compress.core.atomic import replacing
from compress.core.config import Numbers
from compress.core.errors import CompressError, Diverged, InputError
from compress.core.progress import hushed
from compress.core.sections import NameOf
from compress.core.tensors import restore
from compress.criteria import unit_criteria
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.candidates.cache import locked
from evaluators.candidates.evaluator import Evaluator, EvaluatorBase, EvaluatorContext, Metrics, Report, evaluators
from evaluators.candidates.networks import (
    accuracy,
    accuracy_names,
    build,
    candidate_data,
    costs,
    diverged,
    fingerprint,
    names_for,
)
from evaluators.candidates.train import CandidateTrainConfig, StudentTrainConfig, TrainEvaluator, TrainEvaluatorConfig
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import Loader, placed
from evaluators.tasks import TaskConfig
from spaces.architecture import Architecture
from spaces.channels.narrower import Narrower
from spaces.channels.space import ChannelSpace


class UpdatesConfig(TrainConfig):
    """Training settings of one pass over the `steps` batches; the schedule spans it."""

    epochs: Annotated[Literal[1], Numbers()] = Field(1, description="one pass over `steps` batches")
    lr: float = Field(1e-3, gt=0, description="learning rate after warm-up")
    evaluate_every: int = Field(0, ge=0, description="0: a candidate is judged once, at its end")


@evaluators.register("finetune")
class FinetuneEvaluatorConfig(EvaluatorBase):
    """Narrow a trained network of space channels to the candidate, fine-tune it, judge it on held-out training images.

    A candidate starts from the smallest network evaluated before that is nowhere narrower. The widest network is
    trained by `seed_train` when it is asked for or needed first. The test images are never looked at.
    """

    resumable = False  # candidates are cut out of networks whose weights are deleted at the end
    kind: Literal["finetune"] = "finetune"
    steps: int = Field(100, ge=1, description="updates that a candidate is fine-tuned for; the paper has 10,000")
    train: UpdatesConfig = Field(default_factory=UpdatesConfig, description="how a candidate is fine-tuned")
    seed_train: CandidateTrainConfig | None = Field(
        None, description="how the widest network is trained; null: the model comes with weights"
    )
    criterion: Annotated[str, NameOf(unit_criteria)] = Field(
        "magnitude", description="which units stay: a criterion of structure pruning"
    )
    calibration_batches: int = Field(4, ge=1, description="training batches for criteria that look at data")
    holdout: float = Field(0.2, gt=0, lt=1, description="share of the training images that candidates are judged on")

    def metrics_for(self, task: TaskConfig, sections: Mapping[str, Any]) -> Collection[str]:
        """Return the task's, params, macs."""
        return names_for(task)

    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError where space, data or the model's weights are missing."""
        return FinetuneEvaluator(self, context)


class FinetuneEvaluator(Evaluator):
    """Fine-tunes candidates, and keeps their weights while the search lasts.

    The same architecture and seed give the same metrics where the same wider networks were evaluated before; so it is
    in NetAdapt, whose iterations end before the next begins.
    """

    def __init__(self, config: FinetuneEvaluatorConfig, context: EvaluatorContext) -> None:
        if not isinstance(context.space, ChannelSpace):
            raise InputError(f"search.evaluator: kind finetune narrows space channels; got {context.space.name}")
        self.config, self.space, self.device = config, context.space, context.device
        self.folder = context.directory / "finetuned"
        self.data = candidate_data(context, config.holdout, config.kind)
        self.widest = self.space.widest()
        self._trainer = self._make_trainer(replace(context, directory=self.folder))
        self._parent: Parent | None = None

    def _make_trainer(self, context: EvaluatorContext) -> TrainEvaluator | None:
        """Return what trains the widest network; None where the model comes with weights."""
        model = self.space.config.model
        if self.config.seed_train is not None:
            train = StudentTrainConfig.model_validate(self.config.seed_train.model_dump())
            config = TrainEvaluatorConfig(train=train, holdout=self.config.holdout, keep_weights=True)
            return TrainEvaluator(config, context)
        if not model.has_weights:
            raise InputError(
                f"search.evaluator.seed_train: missing; {model.name!r} comes without weights, so say how it is trained"
            )
        return None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's, params, macs."""
        return accuracy_names(self.data)

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Cut `arch` out of its parent, fine-tune it and return its metrics."""
        arch = self.space.check(arch)
        with hushed():
            if arch == self.widest:
                return self._evaluate_widest(wanted, seed, report)
            with locked(self.folder / "widest.lock"):
                if not self.weights_path(self.widest, seed).is_file():
                    self._evaluate_widest(wanted, seed, None)
            try:
                return self._finetuned(arch, self._parent_of(arch, seed), seed)
            except Diverged as error:
                return diverged(self.data, error) | costs(self.space, arch, self.data)

    def weights_path(self, arch: Architecture, seed: int) -> Path:
        """Return where the weights of an evaluated network are."""
        if self._trainer is not None and arch == self.widest:
            return self._trainer.weights_path(arch, seed)
        name = fingerprint(self.space, arch, seed=seed, **self.config.model_dump(mode="json"))
        return self.folder / f"{name}.safetensors"

    def tidy(self) -> None:
        """Delete all weights."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _evaluate_widest(self, wanted: Collection[str], seed: int, report: Report | None) -> Metrics:
        """Train the widest network where it has no weights yet, and judge it."""
        if self._trainer is None:
            model = build(self.space, self.widest, self.data, seed).eval()
            return self._judged(model, self.widest, seed, updates=0)
        found = self._trainer.evaluate(self.widest, wanted, seed, report)
        if not self.weights_path(self.widest, seed).is_file():
            raise CompressError("the widest network's training diverged: try a lower search.evaluator.seed_train.lr")
        return found

    def _finetuned(self, arch: Architecture, parent: Parent, seed: int) -> Metrics:
        """Narrow the parent and fine-tune what is left, on the batches after those that the parent saw."""
        assert self.data.train is not None
        model = parent.narrower.narrowed(arch)
        train = Updates(placed(self.data.train, self.device), parent.updates, self.config.steps)
        fit(model, replace(self.data, train=train), self.config.train, device=self.device, seed=seed, label="candidate")
        return self._judged(model, arch, seed, parent.updates + self.config.steps)

    def _judged(self, model: nn.Module, arch: Architecture, seed: int, updates: int) -> Metrics:
        """Return the metrics of a network, whose weights are kept."""
        found = accuracy(model, self.data, self.device) | costs(self.space, arch, self.data)
        state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
        with replacing(self.weights_path(arch, seed)) as temporary:
            save_file(state, temporary, metadata={"architecture": arch.to_json(), "updates": str(updates)})
        return found

    def _parent_of(self, arch: Architecture, seed: int) -> Parent:
        """Return the smallest network evaluated so far that is nowhere narrower; the last one is kept at hand."""
        wider: list[tuple[int, Path, Architecture, int]] = []
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                about = file.metadata()
            other = self.space.check(json.loads(about["architecture"]))
            if _is_wider(other, arch) and path == self.weights_path(other, seed):
                wider.append((self.space.cost(other)["params"], path, other, int(about.get("updates", 0))))
        # of several that cost the same, one by its choices: file names change with every new setting
        _, path, found, updates = min(wider, key=lambda each: (each[0], each[2].to_json()))
        if self._parent is None or self._parent.path != path:
            self._parent = Parent(path, updates, self._opened(path, found, seed))
        return self._parent

    def _opened(self, path: Path, arch: Architecture, seed: int) -> Narrower:
        model = build(self.space, arch, self.data, seed).eval()
        restore(model, load_file(path))
        task = self.data.task
        loader, batches = self.data.train, self.config.calibration_batches
        assert loader is not None
        return Narrower(self.space, model, arch, task, self.config.criterion, lambda: islice(loader.epoch(0), batches))


@dataclass(frozen=True)
class Parent:
    """The network that candidates are cut out of, its file, and how many updates it was fine-tuned for in all."""

    path: Path
    updates: int
    narrower: Narrower


class Updates:
    """A loader of one epoch: `steps` batches of `loader`, from batch `first` of its endless sequence of epochs on."""

    def __init__(self, loader: Loader, first: int, steps: int) -> None:
        self.loader, self.first, self.steps = loader, first, steps
        self.batch_size, self.num_samples = loader.batch_size, steps * loader.batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from number `start` on."""
        return islice(self._endless(self.first + epoch * self.steps + start), self.steps - start)

    def batches(self) -> Iterator[Batch]:
        """Yield every sample of the loader once."""
        return self.loader.batches()

    def _endless(self, first: int) -> Iterator[Batch]:
        epoch, start = divmod(first, len(self.loader))
        yield from self.loader.epoch(epoch, start)
        for later in count(epoch + 1):
            yield from self.loader.epoch(later)


def _is_wider(other: Architecture, arch: Architecture) -> bool:
    """Return whether `other` is nowhere narrower than `arch`, and not the same."""

    def width(one: Architecture, name: str) -> float:
        return float(one[name]) if name in one else 0.0

    return other != arch and all(width(other, name) >= width(arch, name) for name in arch)
