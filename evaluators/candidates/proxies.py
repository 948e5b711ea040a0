"""Candidates judged without training, by zero-cost scores alone or combined by rank."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.progress import track
from evaluators.candidates.cache import JsonCache, locked
from evaluators.candidates.evaluator import Evaluator, EvaluatorBase, EvaluatorContext, Metrics, Report, evaluators
from evaluators.candidates.networks import build, data_for
from evaluators.candidates.zero_cost import grad_norm, jacov, naswot, synflow
from evaluators.datasets import Batch, Data
from evaluators.datasets.batch import joined
from evaluators.tasks import Task, TaskConfig
from spaces.architecture import Architecture

Score = Literal["params", "macs", "synflow", "jacov", "naswot", "grad_norm"]
SCORES: tuple[str, ...] = get_args(Score)
ON_IMAGES = ("jacov", "naswot", "grad_norm")
OF_A_TENSOR = ("synflow", "jacov", "naswot")
"""Those of networks that take one tensor of images and give one of outputs."""


@evaluators.register("proxy")
class ProxyConfig(EvaluatorBase):
    """Judge candidates by scores of the untrained network: metrics params, macs, synflow, jacov, naswot, grad_norm.

    The metric `proxy` combines several: each score's rank among a sample of architectures, drawn once, as a number
    between 0 and 1.
    """

    kind: Literal["proxy"] = "proxy"
    scores: list[Score] = Field(["synflow", "naswot"], min_length=1, description="what the metric proxy combines")
    combine: Literal["rank", "rank_product"] = Field(
        "rank", description="rank: the mean of the scores' ranks; rank_product: their product"
    )
    reference: int = Field(100, ge=2, description="architectures, drawn with the seed, that proxy ranks against")
    batch: int = Field(64, ge=2, description="training images that jacov, naswot and grad_norm look at")

    def unfit(self, task: Task) -> str | None:
        """Return that the task has no loss, where a score is its gradient."""
        if task.has_loss or "grad_norm" not in self.scores:
            return None
        return f"the score grad_norm is of a loss, and task {task.name} has none; allowed: the other scores"

    def metrics_for(self, task: TaskConfig, sections: Mapping[str, Any]) -> Collection[str]:
        """Return every score, and proxy."""
        return (*SCORES, "proxy")

    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError where a score needs images and there are none."""
        return ProxyEvaluator(self, context)


class ProxyEvaluator(Evaluator):
    """Scores untrained networks; the initial weights depend on the seed and the architecture alone."""

    def __init__(self, config: ProxyConfig, context: EvaluatorContext) -> None:
        self.config, self.context = config, context
        self.data = context.data if context.data is not None and context.data.train is not None else None
        need = [name for name in config.scores if name in ON_IMAGES and self.data is None]
        if need:
            raise InputError(
                f"search.evaluator.scores: {need[0]} needs training images; name a data set in data, "
                "or combine only synflow, params and macs"
            )
        self._cache = JsonCache(context.directory / "proxies.jsonl")
        self._images: dict[int, Batch] = {}
        self._known_ranks: dict[int, dict[str, Ranks]] = {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every score that the data and the task allow, and proxy where they allow what it combines."""
        whole = (self.context.space.default_task if self.data is None else self.data.task).gives_tensor
        known = [
            name
            for name in SCORES
            if (self.data is not None or name not in ON_IMAGES) and (whole or name not in OF_A_TENSOR)
        ]
        return (*known, "proxy") if set(self.config.scores) <= set(known) else tuple(known)

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Return the wanted scores of `arch`, and those that a wanted `proxy` combines."""
        combined = self.config.scores if "proxy" in wanted else []
        found = self._scores(arch, [name for name in SCORES if name in wanted or name in combined], seed)
        if combined:
            ranks = [self._ranks(seed)[name](found[name]) for name in combined]
            found["proxy"] = fmean(ranks) if self.config.combine == "rank" else math.prod(ranks)
        return found

    def _scores(self, arch: Architecture, names: Sequence[str], seed: int) -> Metrics:
        space = self.context.space
        arch = space.canonical(arch)
        data = None if self.data is None else data_for(space, arch, self.data)
        task = space.default_task if data is None else data.task
        found: Metrics = {}
        if "params" in names or "macs" in names:
            found |= {name: float(value) for name, value in space.cost(arch, task).items() if name in names}
        if set(names) - set(found):
            model = build(space, arch, data, seed)
            if "synflow" in names:
                side = space.input_size(arch, task.img_size)
                found["synflow"] = synflow(model, (task.in_chans, side, side))
            if data is not None and set(names) & set(ON_IMAGES):
                batch = self._batch(data)
                with on_device(model, self.context.device):
                    found |= {name: _on_images(name, model, batch, data.task) for name in names if name in ON_IMAGES}
        return found

    def _batch(self, data: Data) -> Batch:
        """Return the same training images, (N, C, H, W), with their targets at every call for one image size."""
        if data.image_size not in self._images:
            assert data.train is not None
            wanted, parts = self.config.batch, []
            for part in data.train.epoch(0):
                parts.append(part)
                if sum(map(len, parts)) >= wanted:
                    break
            have = sum(map(len, parts))
            if have < wanted:
                raise InputError(f"search.evaluator.batch: got {wanted}; the data have {have} training images")
            self._images[data.image_size] = joined(parts).part(0, wanted).to(self.context.device)
        return self._images[data.image_size]

    def _ranks(self, seed: int) -> Mapping[str, Ranks]:
        if seed not in self._known_ranks:
            key = self._sample_name(seed)
            with locked(self.context.directory / "reference.lock"):  # one worker scores the sample, the others wait
                values = self._cache.get(key)
                if values is None:
                    values = self._reference(seed)
                    self._cache.put(key, values)
            self._known_ranks[seed] = {name: Ranks(values[name]) for name in self.config.scores}
        return self._known_ranks[seed]

    def _sample_name(self, seed: int) -> str:
        space, data = self.context.space, self.data
        settings = self.config.model_dump(include={"scores", "reference", "batch"})
        options = space.config.model_dump(mode="json", exclude_defaults=True)
        own = space.default_task
        task = (own.num_outputs, *own.input_size) if data is None else data.preprocessing.to_dict()
        return f"{space.name} {options} {task} {settings} seed {seed}"

    def _reference(self, seed: int) -> dict[str, list[float | None]]:
        generator = random.Random(seed)
        drawn = [self.context.space.sample(generator) for _ in range(self.config.reference)]
        scored = [self._scores(arch, self.config.scores, seed) for arch in track(drawn, "scoring a reference sample")]
        return {name: [_finite(each[name]) for each in scored] for name in self.config.scores}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has neither NaN nor infinity


def _on_images(name: str, model: nn.Module, batch: Batch, task: Task) -> float:
    if name == "grad_norm":
        return grad_norm(model, batch, task)
    assert isinstance(batch.inputs, Tensor)
    return jacov(model, batch.inputs) if name == "jacov" else naswot(model, batch.inputs)


class Ranks:
    """Where a value stands among others, as a number between 0 and 1 that grows strictly with the value.

    Between two values of the sample it is interpolated; beyond the largest (smallest) it goes on towards 1 (0), so
    that architectures better than the whole sample still differ. NaN and the infinities, scores of networks whose
    values are beyond float32, are below everything: 0 (a sample's are left out).
    """

    def __init__(self, sample: Sequence[float | None]) -> None:
        finite = [value for value in sample if value is not None and math.isfinite(value)]
        values: Any = np.sort(np.asarray(finite or [0.0], dtype=float))
        self.values, first, counts = np.unique(values, return_index=True, return_counts=True)
        self.ranks = first + (counts + 1) / 2  # from 1; equal values share theirs
        self.size = len(values)
        self.spread = float(values[-1] - values[0]) / 2 or abs(float(values[0])) or 1.0

    def __call__(self, value: float) -> float:
        """Return the rank of `value`."""
        if not math.isfinite(value):
            return 0.0
        low, high = self.values[0], self.values[-1]
        rank = float(np.interp(value, self.values, self.ranks))
        if value > high:
            rank += (self.size + 1 - rank) * _towards_one((value - high) / self.spread)
        elif value < low:
            rank -= rank * _towards_one((low - value) / self.spread)
        return rank / (self.size + 1)


def _towards_one(distance: float) -> float:
    return distance / (1 + distance)
