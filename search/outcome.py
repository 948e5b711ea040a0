"""What a search found: the best architectures or the Pareto front, and how it got there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from compress.errors import CompressError
from search.study import architecture_of, metrics_of, refused
from spaces.architecture import Architecture
from spaces.space import Space


@dataclass(frozen=True)
class Found:
    """One of the best: its trial, architecture, objective values and metrics."""

    number: int
    architecture: Architecture
    values: tuple[float, ...]
    metrics: dict[str, float]


def best(study: Study, space: Space, keep: int) -> list[Found]:
    """Return the `keep` best networks, best first; of several objectives the front, by its first value.

    Where the study's sampler has a method `winners`, that says which trials are best. The same network, found twice,
    is there once. Raises CompressError where no trial is complete.
    """
    winners = getattr(study.sampler, "winners", _winners)
    order: list[FrozenTrial] = winners(study)
    if not order:
        raise CompressError("no architecture was evaluated to the end, so there is no winner")
    found: dict[Architecture, Found] = {}
    for trial in order:
        arch = space.check(architecture_of(trial))
        entry = Found(trial.number, arch, tuple(trial.values), metrics_of(trial))
        found.setdefault(space.canonical(arch), entry)
        if len(found) == keep:
            break
    return list(found.values())


def _winners(study: Study) -> list[FrozenTrial]:
    """Return the complete trials, best first; of several objectives only those of the front."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    signs = _signs(study)
    order = sorted(complete, key=lambda trial: (-signs[0] * trial.values[0], trial.number))
    if len(signs) > 1:
        order = [trial for trial in order if not any(_dominates(other, trial, signs) for other in complete)]
    return order


def history(study: Study) -> list[dict[str, Any]]:
    """Return one entry per trial that was evaluated, in the order in which they finished."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and not refused(trial)]
    trials.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete, trial.number))
    return [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "values": trial.values,
            "seconds": trial.user_attrs.get("result", {}).get("seconds"),
            "metrics": metrics_of(trial),
        }
        for trial in trials
    ]


def counts_by_state(study: Study) -> dict[str, int]:
    """Return how many trials were complete, stopped early, refused before evaluation, or failed."""
    trials = study.get_trials(deepcopy=False)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    return {
        "complete": sum(trial.state == TrialState.COMPLETE for trial in trials),
        "known": sum("same_as" in trial.user_attrs.get("result", {}) for trial in trials),
        "stopped": sum(not refused(trial) for trial in pruned),
        "refused": sum(map(refused, pruned)),
        "failed": sum(trial.state == TrialState.FAIL for trial in trials),
    }


def importance(study: Study) -> dict[str, float]:
    """Return how much each decision matters to the first value (PED-ANOVA, Watanabe et al. 2023), most first.

    Empty where too few trials are complete to tell.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(complete) < 10 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    target = None if len(study.directions) == 1 else (lambda trial: trial.values[0])
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=target)
    return {name: float(share) for name, share in shares.items()}


def hypervolume(points: Sequence[Sequence[float]], signs: Sequence[int], reference: Sequence[float]) -> float:
    """Return the volume that `points` dominate up to `reference`; sign 1 is maximised, -1 minimised."""
    from optuna._hypervolume import compute_hypervolume

    losses = -np.array(points, dtype=float) * np.array(signs, dtype=float)
    limit = -np.array(reference, dtype=float) * np.array(signs, dtype=float)
    return float(compute_hypervolume(losses[(losses <= limit).all(axis=1)], limit))


def _signs(study: Study) -> list[int]:
    return [1 if direction.name == "MAXIMIZE" else -1 for direction in study.directions]


def _dominates(one: FrozenTrial, other: FrozenTrial, signs: Sequence[int]) -> bool:
    gains = [sign * (a - b) for sign, a, b in zip(signs, one.values, other.values, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)
