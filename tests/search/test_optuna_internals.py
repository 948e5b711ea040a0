"""What is used of Optuna that is not public: each does with this Optuna what it says, and there is no further use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search import optuna_internals
from search.optuna_internals import (
    QMCPoint,
    StudyCopy,
    all_trials,
    hypervolume,
    note_in_study,
    note_in_trial,
    queued_params,
    study_notes,
    trial_notes,
)

ROOT = Path(optuna_internals.__file__).parents[1]
NOT_PUBLIC = re.compile(r"\._storage\b|\._study_id\b|\._trial_id\b|\bsystem_attrs?\b|\boptuna\.(\w+\.)*_\w")


def test_nothing_else_reaches_into_optuna() -> None:
    """Names with an underscore, by imports and attributes, and what only Optuna's own parts are meant to write."""
    found = []
    files = [
        path for package in ("compress", "search", "spaces", "evaluators") for path in (ROOT / package).rglob("*.py")
    ]
    for path in files:
        text = path.read_text(encoding="utf-8")
        if path == Path(optuna_internals.__file__) or "optuna" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optuna":
                names = [f"optuna.{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            else:
                continue
            own = ("self.", "cls.")
            found += [f"{path}: {name}" for name in names if NOT_PUBLIC.search(name) and not name.startswith(own)]
    assert len(files) > 100 and not found


def test_all_trials_of_a_study_are_seen_where_hyperband_shows_a_part() -> None:
    seen: list[tuple[int, int]] = []

    class Looking(RandomSampler):
        def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            seen.append((len(study.get_trials(deepcopy=False)), len(all_trials(study))))
            return {}

    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3)
    study = optuna.create_study(sampler=Looking(), pruner=pruner)
    for _ in range(12):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.0, step=1)
        trial.should_prune()
        study.tell(trial, 0.0)
    assert [whole for _, whole in seen] == list(range(1, 13))
    assert seen[-1][0] < 12


def test_choices_of_a_queued_trial_are_known_before_they_are_asked_for(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")
    study.enqueue_trial({"a": 3, "b": "x"})
    study.ask().suggest_int("a", 0, 5)
    study.ask()
    queued, other = study.trials
    assert queued.params == {"a": 3} and queued_params(queued) == {"a": 3, "b": "x"}
    assert queued_params(other) == {}


@pytest.mark.parametrize("storage", ["memory", "journal", "sqlite"])
def test_notes_are_there_for_whoever_opens_the_study(storage: str, tmp_path: Path) -> None:
    kept = optuna.storages.InMemoryStorage()

    def opened() -> optuna.Study:
        file = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        where = {
            "memory": kept,
            "journal": optuna.storages.JournalStorage(file),
            "sqlite": f"sqlite:///{tmp_path}/study.db",
        }[storage]
        return optuna.create_study(study_name="it", storage=where, load_if_exists=True)

    study = opened()
    study.ask()
    trial = study.get_trials(deepcopy=False)[0]
    note_in_study(study, "sampler:generation", [1, 2])
    note_in_trial(study, trial, "sampler:parents", [0])
    assert study_notes(opened()) == {"sampler:generation": [1, 2]}
    assert trial_notes(opened().trials[0]) == {"sampler:parents": [0]}


def test_a_copy_has_trials_that_begin_and_end_in_any_order() -> None:
    like = optuna.create_study(direction="maximize")
    for _ in range(2):
        like.ask()
    note_in_trial(like, like.trials[1], "sampler:parents", [0])
    optuna.trial.Trial(like, 1).report(0.5, step=3)
    like.tell(1, 2.0)
    like.tell(0, state=TrialState.FAIL)
    second = like.trials[1]

    copied = StudyCopy([StudyDirection.MAXIMIZE])
    scale, kinds = IntDistribution(0, 4), CategoricalDistribution(("a", "b"))
    assert [copied.begin() for _ in range(3)] == [0, 1, 2]
    early = copied.study()
    copied.finish(1, second, {"scale": 2, "kind": 1}, {"scale": scale, "kind": kinds})
    copied.fail(0)
    study = copied.study()
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "RUNNING"]
    assert study.best_trial.params == {"scale": 2, "kind": "b"} and study.best_value == 2.0
    end = copied.trial(1)
    assert trial_notes(end) == {"sampler:parents": [0]} and end.intermediate_values == {3: 0.5}
    note_in_study(early, "sampler:generation", 1)
    assert study_notes(study) == {"sampler:generation": 1}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_points_of_a_sequence_hang_on_their_number_alone() -> None:
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    study = optuna.create_study()
    study.ask()

    def point(sampler: BaseSampler) -> dict[str, float]:
        return sampler.sample_relative(study, study.trials[0], space)

    counting = optuna.samplers.QMCSampler(seed=1, scramble=True)
    counted = [point(counting) for _ in range(4)]
    order = [2, 0, 3, 1]
    assert [point(QMCPoint(number, seed=1, scramble=True)) for number in order] == [counted[n] for n in order]


def test_the_hypervolume_is_the_area_below_the_steps_and_the_volume_of_a_box() -> None:
    limit = np.array([4.0, 4.0])
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]), limit) == pytest.approx(3 * 1 + 2 * 1)
    assert hypervolume(np.array([[1.0, 1.0, 1.0]]), np.array([3.0, 4.0, 5.0])) == pytest.approx(2 * 3 * 4)
    assert hypervolume(np.empty((0, 2)), limit) == 0
