"""What a search found: the best architectures or the Pareto front, and how it got there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from compress.core.errors import CompressError
from search import optuna_internals
from search.study import architecture_of, failed, metrics_of, refused
from spaces.architecture import Architecture
from spaces.space import Space


@dataclass(frozen=True)
class Found:
    """One of the best: its trial, architecture, objective values and metrics."""

    number: int
    architecture: Architecture
    values: tuple[float, ...]
    metrics: dict[str, float]


def best(study: Study, space: Space, keep: int | None) -> list[Found]:
    """Return the `keep` best networks, best first; of several objectives those of the front, by its first value.

    None keeps the best one, of several objectives the whole front. Where the study's sampler has a method `winners`,
    that says which trials are best. The same network, found twice, is there once. Raises CompressError where no trial
    is complete.
    """
    if keep is None and len(study.directions) == 1:
        keep = 1
    winners = getattr(study.sampler, "winners", _winners)
    order: list[FrozenTrial] = winners(study)
    if not order:
        raise CompressError(f"no architecture was evaluated to the end, so there is no winner{_why(study)}")
    found: dict[Architecture, Found] = {}
    for trial in order:
        arch = space.check(architecture_of(trial))
        entry = Found(trial.number, arch, tuple(trial.values), metrics_of(trial))
        found.setdefault(space.canonical(arch), entry)
        if len(found) == keep:
            break
    return list(found.values())


def _why(study: Study) -> str:
    """Return what spoke against the last evaluated trial: what was raised, or the constraint that it broke."""
    results = [trial.user_attrs.get("result", {}) for trial in study.get_trials(deepcopy=False)]
    for key, what in (("failed", "failed"), ("broken", "broke a constraint")):
        found = [result[key] for result in results if key in result]
        if found:
            return f": {len(found)} of {len(results)} {what}, the last: {found[-1]}"
    return ""


def _winners(study: Study) -> list[FrozenTrial]:
    """Return the complete trials, best first; of several objectives only those of the front."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    signs = _signs(study)
    order = sorted(complete, key=lambda trial: (*_losses(trial, signs), trial.number))
    if len(signs) > 1:
        order = _front(order, signs)
    return order


def evaluated(study: Study) -> list[FrozenTrial]:
    """Return the finished trials that were not refused before evaluation, in the order in which they finished."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and not refused(trial)]
    return sorted(trials, key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete, trial.number))


def history(study: Study) -> list[dict[str, Any]]:
    """Return one entry per trial that was evaluated, in the order in which they finished.

    Values are of complete trials alone: to one that was stopped or broke a constraint Optuna gives the last value that
    its training reported, which is none of the objective.
    """
    return [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "values": trial.values if trial.state == TrialState.COMPLETE else None,
            "seconds": trial.user_attrs.get("result", {}).get("seconds"),
            "metrics": metrics_of(trial),
            **({"failed": trial.user_attrs["result"]["failed"]} if failed(trial) else {}),
        }
        for trial in evaluated(study)
    ]


def counts_by_state(study: Study) -> dict[str, int]:
    """Return how many trials were complete, broke a constraint, were stopped early, refused, left out or failed.

    `known` are those of the complete ones whose network an earlier trial had evaluated. `broken` are trials whose
    evaluation showed that they break a constraint or have no finite value, `refused` those that broke one before it.
    What was raised for an architecture leaves it out; a trial failed where the search ended in its midst.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    broken = [trial for trial in pruned if "broken" in trial.user_attrs.get("result", {}) and not failed(trial)]
    stopped = len(pruned) - sum(refused(trial) or failed(trial) for trial in pruned) - len(broken)
    return {
        "complete": len(complete),
        "known": sum("same_as" in trial.user_attrs.get("result", {}) for trial in complete),
        "broken": len(broken),
        "stopped": stopped,
        "refused": sum(map(refused, pruned)),
        "left_out": sum(map(failed, pruned)),
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
    loss = None if len(study.directions) == 1 else (lambda trial: _losses(trial, _signs(study))[0])
    with warnings.catch_warnings():  # that a target is taken as a loss, which it is, and in Optuna 4 of a new feature
        warnings.simplefilter("ignore")
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=loss)
    return {name: float(share) for name, share in shares.items()}


def hypervolume(points: Sequence[Sequence[float]], signs: Sequence[int], reference: Sequence[float]) -> float:
    """Return the volume that `points` dominate up to `reference`; sign 1 is maximised, -1 minimised."""
    losses = -np.array(points, dtype=float) * np.array(signs, dtype=float)
    limit = -np.array(reference, dtype=float) * np.array(signs, dtype=float)
    return optuna_internals.hypervolume(losses[(losses <= limit).all(axis=1)], limit)


def hypervolume_course(study: Study) -> dict[str, Any] | None:
    """Return the hypervolume after each complete trial, as they finished, and the point up to which it is taken.

    That point is the worst of each objective among the complete trials. None with one objective or no complete trial.
    """
    signs = _signs(study)
    points = [trial.values for trial in evaluated(study) if trial.state == TrialState.COMPLETE]
    if len(signs) == 1 or not points:
        return None
    reference = [(min if sign > 0 else max)(point[place] for point in points) for place, sign in enumerate(signs)]
    front: list[list[float]] = []
    course: list[float] = []
    for point in points:
        if not any(_is_as_good(other, point, signs) for other in front):
            front = [other for other in front if not _is_as_good(point, other, signs)] + [point]
            course.append(hypervolume(front, signs, reference))
        else:
            course.append(course[-1])
    return {"reference": reference, "final": course[-1], "course": course}


def _signs(study: Study) -> list[int]:
    return [1 if direction.name == "MAXIMIZE" else -1 for direction in study.directions]


def _losses(trial: FrozenTrial, signs: Sequence[int]) -> list[float]:
    return [-sign * value for sign, value in zip(signs, trial.values, strict=True)]


def _front(order: Sequence[FrozenTrial], signs: Sequence[int]) -> list[FrozenTrial]:
    """Return the trials that no other dominates; `order` has what dominates a trial before it."""
    front: list[FrozenTrial] = []
    for trial in order:
        if not any(_is_as_good(other.values, trial.values, signs) and other.values != trial.values for other in front):
            front.append(trial)
    return front


def _is_as_good(one: Sequence[float], other: Sequence[float], signs: Sequence[int]) -> bool:
    """Return whether `one` is nowhere worse."""
    return all(sign * a >= sign * b for sign, a, b in zip(signs, one, other, strict=True))
