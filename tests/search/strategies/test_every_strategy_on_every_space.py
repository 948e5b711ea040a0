"""Every strategy proposes legal architectures on every space, with constraints, one worker and four."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from compress.errors import InputError
from evaluators.evaluator import Evaluator, Metrics, Report
from search.config import SearchConfig
from search.executors import run_search
from search.job import SearchJob
from search.runner import Asked, Judge, Outcome, Runner
from search.strategies import make_sampler, strategy_names
from search.study import architecture_of
from spaces.architecture import Architecture
from spaces.registry import create, space_names
from spaces.space import Space

TRIALS = 60
DECISIONS = ["a", "b", "c"]
SPACES: dict[str, dict[str, Any]] = {
    "channels": {"depth": True},
    "hytra": {"layers": 6, "blocks": 2, "channels": [16, 32, 64], "head_dim": 8},
    "mnasnet": {"widths": [8, 16, 24], "depths": [1, 2, 2], "strides": [1, 2, 2], "stem": 8, "last_conv": 32},
    "mobilenetv3": {"skeleton": "tiny", "widths": [0.5, 1.0], "resolutions": [24, 32], "se": "searched"},
    "nas_bench_macro": {},
    "nasnet": {"cells_per_stage": 1, "filters": 4},
    "nats_size": {},
    "pooling": {},
    "table": {"decisions": DECISIONS},
}
NUMERIC = {"channels", "mobilenetv3", "nats_size", "pooling"}
"""Where NetAdapt can work: every decision is a number."""
OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {"initial": 20},
    "gp": {"options": {"n_startup_trials": 57}},  # a fit over fifty decisions takes a second
    "local_search": {"improvement": "best"},
    "netadapt": {"resource": "macs", "target": 0.5, "delta": 0.01},
    "nsga2": {"options": {"population_size": 10}},
    "nsga3": {"options": {"population_size": 10}},
    "ppo": {"hidden": 8, "batch": 5, "passes": 1},
    "regularized_evolution": {"population": 10, "sample": 3},
    "reinforce": {"batch": 5},
}
OURS = {"auto", "local_search", "ppo", "regularized_evolution", "reinforce"}
STRATEGIES = [name for name in strategy_names() if not name.startswith("nni:") or importlib.util.find_spec("nni")]


class Noise(Evaluator):
    """Worth that hangs on the architecture alone, and has no pattern."""

    metrics = ("top1",)

    def __init__(self, space: Space) -> None:
        self.space = space

    def free(self, arch: Architecture) -> Metrics:
        """A cost that needs no networks, so that tables have one too: more for later choices."""
        return {"macs": float(sum(1 + self.space._named[name].index(arch[name]) for name in arch)), "params": 1.0}

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        digest = hashlib.sha256(json.dumps(dict(arch), sort_keys=True).encode()).digest()
        return {"top1": digest[0] / 2.56}


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Space]:
    """One of each registered space; the table has holes."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rows = [row for row in itertools.product(range(6), repeat=3) if sum(row) % 4]
    path.write_text("\n".join([",".join(DECISIONS), *(",".join(map(str, row)) for row in rows)]) + "\n")
    made = {}
    for name, options in SPACES.items():
        made[name] = create(name, {**options, "path": str(path)} if name == "table" else options)
    return made


def runner_for(strategy: str, space: Space) -> Runner:
    """A search; strategies of ours, which look at constraints first, get one that most random architectures break."""
    costs = sorted(Noise(space).free(space.sample(random.Random(seed)))["macs"] for seed in range(100))
    config = SearchConfig.model_validate(
        {
            "space": {"name": space.name, "options": space.config.model_dump(mode="json")},
            "strategy": {"name": strategy, **OPTIONS.get(strategy, {})},
            "objective": {"constraints": {"macs": {"max": costs[40]}}} if strategy in OURS else {},
            "evaluator": {"kind": "proxy"},
            "trials": TRIALS,
        }
    )
    judge = Judge(space, Noise(space), config.objective, None, 0, config.strategy.metrics)
    job = SearchJob(config, None, None, "matrix", 0, "cpu", Path())
    sampler = make_sampler(config.strategy, job._context(judge))
    return Runner(optuna.create_study(direction="maximize", sampler=sampler), judge, TRIALS)


def work(runner: Runner, workers: int) -> None:
    """Keep `workers` trials under way, which end in any order, until the search is complete."""
    order = random.Random(0)
    under_way: list[Asked] = []
    while True:
        asked = runner.ask() if len(under_way) < workers else None
        if asked is not None:
            assert runner.judge.space.check(dict(asked.arch)) == asked.arch
            under_way.append(asked)
        elif under_way:
            done = under_way.pop(order.randrange(len(under_way)))
            if done.twin is None or not runner.settle(done):
                runner.tell(done, Outcome(runner.judge.full(done.arch, done.free), 0.0))
        else:
            return


def check(runner: Runner) -> None:
    """Make sure that every trial was an architecture, and that the search went on as long as it should."""
    trials = runner.study.get_trials(deepcopy=False)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        runner.judge.space.check(architecture_of(trial))
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    assert complete == TRIALS or runner._exhausted()


def test_every_space_and_strategy_is_tried() -> None:
    assert set(SPACES) == set(space_names())
    assert set(OPTIONS) <= set(strategy_names())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("space", SPACES)
def test_every_proposal_is_legal(space: str, strategy: str, spaces: dict[str, Space]) -> None:
    if strategy == "netadapt" and space not in NUMERIC:
        with pytest.raises(InputError, match=r"netadapt (makes numbers smaller|needs every combination)"):
            runner_for(strategy, spaces[space])
        return
    for workers in (1, 4):
        runner = runner_for(strategy, spaces[space])
        work(runner, workers)
        check(runner)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "space", "macs"), [("auto", "mobilenetv3", 2.0e6), ("local_search", "hytra", 1.6e8)]
)
def test_four_processes_make_legal_proposals(strategy: str, space: str, macs: float, tmp_path: Path) -> None:
    config = SearchConfig.model_validate(
        {
            "space": {"name": space, "options": SPACES[space]},
            "strategy": {"name": strategy, **OPTIONS[strategy]},
            "objective": {"maximize": ["params"], "constraints": {"macs": {"max": macs}}},
            "evaluator": {"kind": "proxy", "scores": ["params"]},
            "trials": TRIALS,
            "executor": {"kind": "local", "workers": 4},
        }
    )
    job = SearchJob(config, None, None, "processes", 0, "cpu", tmp_path)
    runner = job.open()
    run_search(job, runner, None)
    check(runner)
    assert len({trial.user_attrs["worker"] for trial in runner.study.trials if "worker" in trial.user_attrs}) == 4
