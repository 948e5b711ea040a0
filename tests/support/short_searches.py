"""Short searches by every strategy on small spaces, whose architectures are worth something arbitrary but fixed."""

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

from evaluators.candidates.evaluator import Evaluator, Metrics, Report
from evaluators.tasks import DEFAULT
from search.config import SearchConfig
from search.job import SearchJob
from search.judge import Judge, Outcome
from search.runner import Asked, Runner
from search.strategies import make_sampler, strategies
from spaces.architecture import Architecture
from spaces.registry import create
from spaces.space import Space

TRIALS = 60
FEWER = 24
"""Trials by samplers of Optuna's; of ours there are more."""
DECISIONS = ["a", "b", "c"]
SPACES: dict[str, dict[str, Any]] = {
    "channels": {"depth": True},
    "darts": {"channels": 4, "layers": 3},
    "hytra": {"layers": 6, "blocks": 2, "channels": [16, 32, 64], "head_dim": 8},
    "leyolo": {"backbone": {"width": 0.25, "depths": [1, 2], "kernels": [3]}, "neck_kernels": [5]},
    "lraspp": {"backbone": {"skeleton": "tiny", "widths": [0.5, 1.0], "kernels": [3]}, "features": [8, 16]},
    "n2n": {},
    "mnasnet": {"widths": [8, 16, 24], "depths": [1, 2, 2], "strides": [1, 2, 2], "stem": 8, "last_conv": 32},
    "mobilenetv3": {"skeleton": "tiny", "widths": [0.5, 1.0], "resolutions": [24, 32], "se": "searched"},
    "nas_bench_201": {},
    "nas_bench_macro": {},
    "nasnet": {"cells_per_stage": 1, "filters": 4},
    "nats_size": {},
    "pooling": {},
    "resnet_shapes": {"depth": 20},
    "table": {"decisions": DECISIONS},
}
NUMERIC = {"channels", "leyolo", "lraspp", "mobilenetv3", "n2n", "nats_size", "pooling", "resnet_shapes"}
"""Where NetAdapt can work: every decision is a number, or whether something is there."""
REFUSED = {
    "n2n": "n2n removes and shrinks layers of a given model; got space",
    "netadapt": r"netadapt (makes numbers smaller|needs every combination)",
}


def serves(strategy: str, space: str) -> bool:
    """Return whether a strategy can search a space; else its sentence is that of REFUSED."""
    return space in {"n2n": {"n2n"}, "netadapt": NUMERIC}.get(strategy, SPACES)


OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {"initial": 40},
    "gp": {"options": {"n_startup_trials": 23}},  # a fit over fifty decisions takes a second
    "local_search": {"improvement": "best"},
    "n2n": {"accuracy": 100, "rollouts": 3, "removal_epochs": 4, "hidden": 8},
    "netadapt": {"resource": "macs", "target": 0.5, "delta": 0.01},
    "nsga2": {"options": {"population_size": 10}},
    "nsga3": {"options": {"population_size": 10}},
    "ppo": {"hidden": 8, "batch": 5, "passes": 1},
    "regularized_evolution": {"population": 10, "sample": 3},
    "reinforce": {"batch": 5},
}
OURS = {"auto", "local_search", "n2n", "ppo", "regularized_evolution", "reinforce"}
OPTUNAS = {"cmaes", "gp", "nsga2", "nsga3", "qmc", "tpe"}
STRATEGIES = [name for name in strategies.names() if not name.startswith("nni:") or importlib.util.find_spec("nni")]


class Noise(Evaluator):
    """Worth that hangs on the architecture alone, and has no pattern."""

    metrics = ("top1",)

    def __init__(self, space: Space) -> None:
        self._places = {decision.name: decision for decision in space.decisions}

    def free(self, arch: Architecture) -> Metrics:
        """A cost that needs no networks, so that tables have one too: more for later choices."""
        return {"macs": float(sum(1 + self._places[name].index(arch[name]) for name in arch)), "params": 1.0}

    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        digest = hashlib.sha256(json.dumps(dict(arch), sort_keys=True).encode()).digest()
        return {"top1": digest[0] / 2.56}


def make_spaces(table: Path) -> dict[str, Space]:
    """Return one of each registered space; the table, which is written, has holes."""
    rows = [row for row in itertools.product(range(6), repeat=3) if sum(row) % 4]
    table.write_text("\n".join([",".join(DECISIONS), *(",".join(map(str, row)) for row in rows)]) + "\n")
    given = {**SPACES, "table": {**SPACES["table"], "path": str(table)}}
    return {name: create(name, options) for name, options in given.items()}


def runner_for(strategy: str, space: Space, trials: int = TRIALS) -> Runner:
    """A search; strategies of ours, which look at constraints first, get one that most random architectures break."""
    costs = sorted(Noise(space).free(space.sample(random.Random(seed)))["macs"] for seed in range(100))
    config = SearchConfig.model_validate(
        {
            "space": {"name": space.name, "options": space.config.model_dump(mode="json")},
            "strategy": {"name": strategy, **OPTIONS.get(strategy, {})},
            "objective": {"constraints": {"macs": {"max": costs[40]}}} if strategy in OURS else {},
            "evaluator": {"kind": "proxy"},
            "trials": trials,
        }
    ).for_task(DEFAULT)
    judge = Judge(space, Noise(space), config.objective, None, 0, config.strategy.metrics)
    job = SearchJob(config, None, None, "matrix", 0, "cpu", Path())
    sampler = make_sampler(config.strategy, job._context(judge))
    return Runner(optuna.create_study(direction="maximize", sampler=sampler), judge, trials)


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
