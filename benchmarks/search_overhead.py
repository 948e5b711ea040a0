"""What a trial costs before anything is evaluated: our strategies beside Optuna's random sampler, and Ray.

    python benchmarks/search_overhead.py                       # all strategies, one table
    python benchmarks/search_overhead.py auto ppo --trials 200 --profile
    python benchmarks/search_overhead.py --ray                 # seconds per trial on a local Ray cluster, too

In memory: the median time of ask and tell in a study of 1,000 finished trials (`--finished`). On the default storage
(Optuna's journal file): the median ratio of that time to the random sampler's, in turns on two studies of the same
size, since the time of a disk's sync varies. Times are of the wall clock: leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import math
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import create_trial
from rich.console import Console
from rich.table import Table

from compress.core.errors import InputError
from compress.core.progress import track
from search.journal import journal
from search.strategies import StrategyContext
from search.strategies.optuna_samplers import OptunaStrategy
from search.strategies.strategy import StrategyBase, strategies
from spaces.registry import create
from spaces.space import Space

SPACES: dict[str, tuple[str, dict[str, Any]]] = {
    "nats_size": ("nats_size", {}),
    "mobilenetv3 tiny": (
        "mobilenetv3",
        {"skeleton": "tiny", "dataset": "cifar", "kernels": (3, 5), "strides": (2, 1, 1, 2, 2)},
    ),
    "nasnet": ("nasnet", {"cells_per_stage": 1, "filters": 8}),
}
OPTIONS: dict[str, dict[str, Any]] = {"netadapt": {"resource": "macs"}}
RAY_TRIALS = 100


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategies", nargs="*", help="names; all of our own by default")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--finished", type=int, default=1000, help="finished trials in the study")
    parser.add_argument("--trials", type=int, default=100, help="trials that are timed")
    parser.add_argument("--profile", action="store_true", help="print where the time in memory goes")
    parser.add_argument("--ray", action="store_true", help="time trials on a local Ray cluster too")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = {name: kind for name in strategies if (kind := strategies.get(name)) is not OptunaStrategy}
    names = options.strategies or [name for name in known if ":" not in name]
    table = Table(
        "space", "decisions", "strategy", "in memory", "journal", "of random's", title="ask and tell, medians"
    )
    rows = [(space, name) for space in options.spaces for name in names]
    for space_name, name in track(rows, "timing", total=len(rows)):
        space = create(SPACES[space_name][0], SPACES[space_name][1])
        strategy = known[name](name=name, **OPTIONS.get(name, {}))
        try:
            memory = in_memory(space, strategy, options.finished, options.trials, options.profile)
            stored, ratio = on_journal(space, strategy, options.finished, options.trials)
        except InputError:
            table.add_row(space_name, str(len(space.decisions)), name, "-", "-", "not for this space")
            continue
        shown = (f"{1000 * memory:.2f} ms", f"{1000 * stored:.1f} ms", f"{ratio:.2f} x")
        table.add_row(space_name, str(len(space.decisions)), name, *shown)
    Console().print(table)
    if options.ray:
        for batch in (1, 10):
            each = f"{1000 * on_ray(batch):.0f} ms per trial"
            print(f"Ray with reused actors, {batch} architecture(s) per Ray trial: {each}")


def _names(kind: type[StrategyBase]) -> tuple[str, ...]:
    return get_args(kind.model_fields["name"].annotation)


def in_memory(space: Space, strategy: StrategyBase, finished: int, trials: int, profile: bool) -> float:
    """Return the median seconds of ask and tell without storage."""
    study = optuna.create_study(direction="maximize", sampler=_sampler(space, strategy, finished + trials))
    fill(study, space, finished)
    step(study, space, 0)  # what a strategy computes once from the whole history
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    times = [step(study, space, index) for index in range(trials)]
    if profile:
        profiler.disable()
        profiler.print_stats("cumulative")
    return statistics.median(times)


def on_journal(space: Space, strategy: StrategyBase, finished: int, trials: int) -> tuple[float, float]:
    """Return the median seconds on the journal storage, and the median ratio to those of Optuna's random sampler."""
    with tempfile.TemporaryDirectory() as folder:
        studies = []
        for name, sampler in (("own", _sampler(space, strategy, finished + trials)), ("random", RandomSampler(seed=0))):
            storage = journal(Path(folder) / f"{name}.journal")
            studies.append(optuna.create_study(direction="maximize", sampler=sampler, storage=storage))
            fill(studies[-1], space, finished)
            step(studies[-1], space, 0)
        pairs = [[step(study, space, index) for study in studies] for index in range(trials)]
    return statistics.median(own for own, _ in pairs), statistics.median(own / other for own, other in pairs)


def on_ray(batch: int) -> float:
    """Return the mean seconds between two trials of a search on Ray that looks its results up."""
    from search.config import SearchConfig
    from search.job import SearchJob

    logging.getLogger("ray").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        codes = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
        table.write_text("a,b,c,top1\n" + "".join(f"{a},{b},{c},{a * b + c}\n" for a, b, c in codes))
        config = SearchConfig.model_validate(
            {
                "space": {"name": "table", "options": {"path": str(table), "decisions": ["a", "b", "c"]}},
                "strategy": {"name": "regularized_evolution"},
                "evaluator": {"kind": "tabular", "metrics": {"top1": "top1"}},
                "trials": RAY_TRIALS,
                "executor": {"kind": "ray", "workers": 1, "batch": batch},
            }
        )
        job = SearchJob(config, None, None, "overhead", 0, "cpu", Path(folder))
        runner = job.open()
        job.run(runner, None)
        ends = sorted(trial.datetime_complete.timestamp() for trial in runner.study.trials if trial.datetime_complete)
    steady = ends[batch:]
    return (steady[-1] - steady[0]) / (len(steady) - 1)


def _sampler(space: Space, strategy: StrategyBase, trials: int) -> BaseSampler:
    def cost(arch: Any) -> dict[str, float]:
        return {name: float(value) for name, value in space.cost(arch).items()}

    return strategy.sampler(StrategyContext(space=space, directions=("maximize",), trials=trials, seed=0, cost=cost))


def fill(study: Study, space: Space, finished: int) -> None:
    """Enter random trials with random values."""
    generator = random.Random(0)
    distributions: dict[str, BaseDistribution] = dict(space.distributions())
    trials = []
    for _ in range(finished):
        arch = dict(space.sample(generator))
        taken = {name: distributions[name] for name in arch}
        trials.append(create_trial(params=arch, distributions=taken, value=generator.gauss(90, 2)))
    study.add_trials(trials)


def step(study: Study, space: Space, index: int) -> float:
    """Return the seconds of one ask and tell."""
    started = time.perf_counter()
    trial = study.ask()
    space.suggest(trial)
    study.tell(trial, 90 + math.sin(index))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
