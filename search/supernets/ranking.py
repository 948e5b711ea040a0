"""How well a trained supernet ranks networks: its scores, true values to hold them against, and the figures."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from compress.core.progress import track
from compress.training.config import TrainConfig
from evaluators.candidates.evaluator import Evaluator
from search.space import SpaceSection
from search.supernets.rank_quality import SMALLEST, Direction, Quality, quality
from search.supernets.rank_table import ArchitectureLog, Truth, code_text
from spaces.architecture import Architecture
from spaces.space import Space

FEW = 100
"""So many networks are scored where nothing says which; all of a space that has no more."""
_SHOWN = 2000  # dots of the scatter plot
_BEST = 10
_MANY = 10  # fewer resampled networks tell nothing of the interval
_IN_VAIN = 1000  # draws without a new network, after which the space has few others
_COUNTS = (("macs", "MACs"), ("params", "parameters"))


class RankConfig(Config):
    """How well the supernet ranks networks: its scores of many, against values that they reach when trained alone."""

    truth: str | None = Field(None, description="csv file with true values, one network a row; null: none are known")
    code: str | list[str] | None = Field(
        None,
        description="column of truth with the published code, or columns that make it up; null: found by itself",
    )
    metric: str | None = Field(
        None, description="column of truth with the values; null: found by itself. With against: a metric of the task"
    )
    direction: Direction | None = Field(
        None,
        description="which way true values are better; null: as the task's metric of that name, a loss or an error "
        "minimize, else maximize",
    )
    architectures: Annotated[int, Field(ge=SMALLEST)] | None = Field(
        None, description=f"networks that are scored; null: all that truth has, or {FEW} drawn from the space"
    )
    against: int = Field(0, ge=0, description="so many of them are trained alone, where there is no truth; 3 or more")
    train: TrainConfig | None = Field(
        None, description="how they are; null: the recipe's section train, else search.evaluator.train"
    )
    score: str | None = Field(None, description="metric that ranks; null: the first that the supernet is rated by")
    scores: str | None = Field(None, description="csv file that all scores are written to; null: in the run alone")
    recalibrate: int = Field(20, ge=0, description="training batches that estimate a network's batch norms anew")
    space: SpaceSection | None = Field(
        None, description="the space; null: the supernet's, as the sections supernet and search or weights say"
    )
    weights: str | None = Field(
        None, description="directory of a run that has trained a supernet; null: the section supernet of this recipe"
    )

    @model_validator(mode="after")
    def _one_truth(self) -> Self:
        if 0 < self.against < SMALLEST:
            raise ValueError(f"against: the ranks of so few say nothing; got {self.against}; allowed 3 or more")
        if self.against and self.truth is not None:
            raise ValueError("against trains networks where there is no table, and truth names one; give one of both")
        if self.architectures is not None and self.against > self.architectures:
            few = self.architectures
            raise ValueError(
                f"against trains {self.against} of the networks that are scored, and architectures is {few}"
            )
        return self

    @property
    def code_columns(self) -> list[str]:
        """The columns of the code; empty where they are to be found."""
        return [self.code] if isinstance(self.code, str) else list(self.code or [])


def chosen(space: Space, config: RankConfig, truth: Truth | None, seed: int) -> list[Architecture]:
    """Return the different networks, canonical, that are scored.

    Of a table or a small space a shuffled part or all; of a large space as they are drawn, so that a larger number
    begins with the same ones.
    """
    generator = random.Random(seed)
    if truth is not None:
        known = list(truth.values)
        generator.shuffle(known)
        return known[: config.architectures]
    wanted = config.architectures or max(FEW, config.against)
    if space.count() <= 2 * wanted:
        known = list(dict.fromkeys(map(space.canonical, space)))
        generator.shuffle(known)
        return known[:wanted]
    found: dict[Architecture, None] = {}
    since = 0
    while len(found) < wanted and since < _IN_VAIN:  # many architectures may be the same network
        before = len(found)
        found.setdefault(space.canonical(space.sample(generator)))
        since = 0 if len(found) > before else since + 1
    return list(found)


def score_name(evaluator: Evaluator, wanted: str | None) -> str:
    """Return the metric that ranks; raises InputError for one that the evaluator does not give."""
    known = evaluator.metrics
    if wanted is not None and wanted not in known:
        near = did_you_mean(wanted, known)
        raise InputError(f"rank.score: nothing measures {wanted!r}; allowed {', '.join(known)}{near}")
    return wanted or known[0]


def score(evaluator: Evaluator, architectures: Sequence[Architecture], log: ArchitectureLog, seed: int) -> float:
    """Enter the metrics of each of `architectures` that `log` lacks; return the seconds that it took."""
    started = time.monotonic()
    missing = [arch for arch in architectures if arch not in log.found]
    for arch in track(missing, "scoring", len(missing)):
        free = evaluator.free(arch)
        wanted = [name for name in evaluator.metrics if name not in free]
        log.add(arch, {**free, **(evaluator.evaluate(arch, wanted, seed) if wanted else {})})
    return time.monotonic() - started


def digest(settings: Any) -> str:
    """Return 12 hexadecimal digits that stand for JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Ranking:
    """Scores of networks, and their true values where some are known.

    Attributes:
        space: of the networks.
        architectures: that were scored, canonical.
        log: with their metrics.
        score: the metric that ranks.
        direction: which way it is better.
        truth: true values of some or all of them.
    """

    space: Space
    architectures: Sequence[Architecture]
    log: ArchitectureLog
    score: str
    direction: Direction
    truth: Truth | None

    def record(self) -> dict[str, Any]:
        """Return what a report tells, as JSON values; what is no number is null."""
        told = {
            "space": self.space.name,
            "architectures": len(self.architectures),
            "score": self.score,
            "direction": self.direction,
        }
        compared = [arch for arch in self.architectures if self.truth is None or arch in self.truth.values]
        figures: dict[str, Any] = {"truth": None, "proxies": [], "notes": []}
        if self.truth is not None:
            figures = self._against(self.truth, compared)
        best = [self._row(arch) for arch in self.best_first(compared)[:_BEST]]
        return {**told, **figures, "best": best, "points": [self._row(arch) for arch in compared[:_SHOWN]]}

    def best_first(self, architectures: Sequence[Architecture]) -> list[Architecture]:
        """Return `architectures`, the best score first; of equal scores the order that they are in."""
        sign = 1 if self.direction == "maximize" else -1

        def worse(arch: Architecture) -> float:
            value = self.log.found[arch][self.score]
            return -sign * value if math.isfinite(value) else math.inf

        return sorted(architectures, key=worse)

    def _against(self, truth: Truth, compared: Sequence[Architecture]) -> dict[str, Any]:
        values = [truth.values[arch] for arch in compared]

        def judged(metric: str, direction: Direction) -> Quality:
            return quality([self.log.found[arch][metric] for arch in compared], values, direction, truth.direction)

        ours = judged(self.score, self.direction)
        others = [(label, judged(name, "maximize")) for name, label in _COUNTS if name in self.log.metrics]
        others = [(label, found) for label, found in others if found.spearman is not None]  # all the same: no proxy
        named = [(f"supernet, {self.score}", ours), *((f"{label} alone", found) for label, found in others)]
        notes = [*_verdict(ours, others), *self._coverage(truth, len(compared))]
        told = {"source": truth.source, "metric": truth.metric, "direction": truth.direction, "networks": len(compared)}
        return {"truth": told, "proxies": [{"name": name, **found.as_dict()} for name, found in named], "notes": notes}

    def _coverage(self, truth: Truth, compared: int) -> Iterator[str]:
        if compared < len(self.architectures):
            yield f"{compared} of the {len(self.architectures)} scored networks have a true value; figures are theirs."
        if truth.rows > len(truth.values):
            networks = f"{len(truth.values)} different networks"
            yield f"{truth.rows} rows of {truth.source} are {networks}: of the same network, the mean counts."

    def _row(self, arch: Architecture) -> dict[str, Any]:
        metrics = self.log.found[arch]
        true = None if self.truth is None else self.truth.values.get(arch)
        counts = {name: _number(metrics.get(name)) for name, _ in _COUNTS}
        return {"name": code_text(self.space, arch), "score": _number(metrics[self.score]), "truth": true, **counts}


def _verdict(ours: Quality, others: Sequence[tuple[str, Quality]]) -> Iterator[str]:
    """Yield what the figures come to, where the supernet is of no use, or nobody can tell."""
    if ours.not_finite:
        yield f"{ours.not_finite} score(s) are no finite number and count as the worst."
    if ours.spearman is None:
        yield "All scores are equal, or all true values: there is no correlation, and the supernet tells nothing."
        return
    better = [
        (label, found.spearman) for label, found in others if round(found.spearman or 0, 2) > round(ours.spearman, 2)
    ]
    if better:
        told = " and ".join(f"{label} alone ({value:.2f})" for label, value in better)
        yield f"The supernet ranks worse (Spearman {ours.spearman:.2f}) than {told}: to choose by it gains nothing."
    interval = ours.spearman_ci95
    if ours.architectures < _MANY:
        yield f"{ours.architectures} networks are few: others of the space may turn these figures round."
    elif interval is not None and interval[0] <= 0 <= interval[1]:
        yield "The interval of Spearman's correlation includes 0: so few networks cannot tell whether it ranks at all."


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
