"""Every strategy proposes legal architectures on every space, with constraints, one worker and four."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState
from short_searches import (
    FEWER,
    OPTIONS,
    OPTUNAS,
    REFUSED,
    SPACES,
    STRATEGIES,
    TRIALS,
    make_spaces,
    runner_for,
    serves,
    work,
)

from compress.core.errors import InputError
from search import surrogate
from search.config import SearchConfig
from search.job import SearchJob
from search.runner import Runner
from search.strategies import auto, strategies
from search.study import architecture_of
from spaces.registry import spaces as registry
from spaces.space import Space


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Space]:
    return make_spaces(tmp_path_factory.mktemp("table") / "table.csv")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` weigh few candidates by a rough fit: else a proposal takes a tenth of a second."""
    monkeypatch.setattr(auto, "_CHILDREN", 60)
    monkeypatch.setattr(auto, "_STRANGERS", 20)
    monkeypatch.setattr(surrogate, "_STEPS", 3)


def check(runner: Runner) -> None:
    """Make sure that every trial was an architecture, and that the search went on as long as it should."""
    trials = runner.study.get_trials(deepcopy=False)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        runner.judge.space.check(architecture_of(trial))
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    assert complete == runner.trials or runner._exhausted()


def test_every_space_and_strategy_is_tried() -> None:
    assert set(SPACES) == set(registry)
    assert set(OPTIONS) <= set(strategies)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("space", SPACES)
def test_every_proposal_is_legal(space: str, strategy: str, spaces: dict[str, Space]) -> None:
    if not serves(strategy, space):
        with pytest.raises(InputError, match=REFUSED[strategy]):
            runner_for(strategy, spaces[space])
        return
    for workers in (1, 4):
        runner = runner_for(strategy, spaces[space], FEWER if strategy in OPTUNAS else TRIALS)
        work(runner, workers)
        check(runner)


@pytest.mark.slow
def test_four_processes_make_legal_proposals(tmp_path: Path) -> None:
    config = SearchConfig.model_validate(
        {
            "space": {"name": "mobilenetv3", "options": SPACES["mobilenetv3"]},
            "strategy": {"name": "auto"},
            "objective": {"maximize": ["params"], "constraints": {"macs": {"max": 2.0e6}}},
            "evaluator": {"kind": "proxy", "scores": ["params"]},
            "trials": TRIALS,
            "executor": {"kind": "local", "workers": 4},
        }
    )
    job = SearchJob(config, None, None, "processes", 0, "cpu", tmp_path)
    runner = job.open()
    job.run(runner, None)
    check(runner)
    workers = {trial.user_attrs["worker"] for trial in runner.study.trials if "worker" in trial.user_attrs}
    assert 2 <= len(workers) <= 4  # one that starts late on a busy machine finds nothing left to do


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from search import surrogate
from search.strategies import auto
from short_searches import STRATEGIES, make_spaces, runner_for, serves, work

auto._CHILDREN, auto._STRANGERS, surrogate._STEPS = 60, 20, 3
spaces = make_spaces(Path("table.csv"))
for name in ("hytra", "n2n", "table"):
    for strategy in STRATEGIES:
        if not serves(strategy, name):
            continue
        runner = runner_for(strategy, spaces[name], trials=16)
        work(runner, 4)
        params = json.dumps([(trial.state.name, trial.params) for trial in runner.study.trials])
        print(name, strategy, hashlib.sha256(params.encode()).hexdigest())
"""


@pytest.mark.slow
def test_processes_with_other_hashes_of_text_propose_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support = Path(__file__).parents[2] / "support"
    monkeypatch.setenv("PYTHONPATH", str(support), prepend=":")
    running = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        (tmp_path / seed).mkdir()
        running.append(
            subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=tmp_path / seed, stdout=subprocess.PIPE, text=True)
        )
    one, other = (process.communicate()[0].splitlines() for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert len(one) == 3 * len(STRATEGIES) - 4 and one == other
