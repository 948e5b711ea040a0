"""The recipe's model, trained once if need be: what candidates learn from and are compared with."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compress.core.atomic import replacing
from compress.core.errors import CompressError, Diverged, InputError
from compress.core.progress import hushed, say
from compress.core.tensors import restore
from compress.distill.teachers import TeacherConfig, opened
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.candidates.cache import locked
from evaluators.candidates.evaluator import Metrics
from evaluators.candidates.networks import accuracy
from evaluators.cost import count_macs, count_params
from evaluators.datasets import Data
from spaces.zoo import ModelConfig, build_model


class GivenModel:
    """A model of a recipe, for all workers of a search alike.

    Args:
        model: its config.
        train: how it is trained; None: it comes with weights.
        data: what it is trained and judged on: a search's, with held-out training images.
        device: where it is trained and judged.
        seed: of its weights and its training.
        folder: where its weights are kept once it is trained.

    Raises:
        InputError: it has no weights, and nothing says how it is trained.
    """

    def __init__(
        self, model: ModelConfig, train: TrainConfig | None, data: Data, device: str, seed: int, folder: Path
    ) -> None:
        if train is None and not model.has_weights:
            raise InputError(
                f"search.evaluator.teacher_train: missing; {model.name!r} comes without weights, so say how it is "
                "trained"
            )
        self.model, self.train, self.data, self.device, self.seed = model, train, data, device, seed
        settings = {"model": model.model_dump(mode="json"), "train": train and train.neutral(), "seed": seed}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"teacher-{digest[:16]}.safetensors"
        self._module: nn.Module | None = None
        self._metrics: Metrics | None = None

    def module(self) -> nn.Module:
        """Return the model in evaluation mode; the first worker to ask trains it, the others wait for it."""
        if self._module is None:
            self._module = self._trained() if self.train is not None else self._weighted()
        return self._module.eval()

    def metrics(self) -> Metrics:
        """Return the task's metrics on the held-out images, params and macs."""
        if self._metrics is None:
            module, task = self.module(), self.data.task
            sizes = torch.zeros(1, *task.input_size, device=next(module.parameters()).device)
            costs = {"params": float(count_params(module)[0]), "macs": float(count_macs(module, sizes))}
            self._metrics = accuracy(module, self.data, self.device) | costs
        return self._metrics

    def _weighted(self) -> nn.Module:
        return opened("teacher", TeacherConfig(model=self.model), self.data, key="search")

    def _trained(self) -> nn.Module:
        assert self.train is not None
        module = build_model(self.model, self.data.task, self.seed).module
        with locked(self.path.with_suffix(".lock")):
            if self.path.is_file():
                restore(module, load_file(self.path))
                return module
            self._fit(module, self.train)
        return module

    def _fit(self, module: nn.Module, train: TrainConfig) -> None:
        checkpoints = self.path.with_suffix("")
        say(f"search: the model that students learn from is trained for {train.epochs} epochs")
        try:
            with hushed():
                fit(
                    module,
                    self.data,
                    train,
                    device=self.device,
                    seed=self.seed,
                    label="teacher",
                    checkpoint_dir=checkpoints,
                    resume=True,
                )
        except Diverged as error:
            raise CompressError(
                f"the teacher's training diverged ({error}): try a lower search.evaluator.teacher_train.lr"
            ) from error
        state = {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
        with replacing(self.path) as temporary:
            save_file(state, temporary)
        shutil.rmtree(checkpoints, ignore_errors=True)
