"""Every strategy on tables of published results: the best accuracy found, and the regret, at equal evaluations.

    python benchmarks/search_tables.py [--seeds 50] [--processes 2] [--tables nats_size ...] [--strategies auto tpe ...]
    python benchmarks/search_tables.py --csv my.csv --decisions width depth kernel --metric accuracy

Without --csv it reads NATS-Bench's size space, NAS-Bench-Macro and Accel-NASBench from the folder that COMPRESS_DATA
names. Each run is an Optuna study in memory whose objective looks the architecture up; where a table lacks rows, the
row nearest to a proposal is evaluated (see `spaces.table`). Regret is the table's best minus the best found. A run ends
early once it has found the table's best. Prints one table: mean over seeds at 50, 100, 200 and 500 evaluations
(Optuna's GP takes a third of a second per proposal at 200 evaluations and far more at 500: --evaluations 200).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from pydantic import TypeAdapter

from search.strategies import StrategyConfig, StrategyContext, make_sampler
from spaces.table import TableConfig, TableSpace

AT = (50, 100, 200, 500)
_BLOCKS = [f"block{block}_{part}" for block in range(7) for part in ("e", "k", "l", "se")]
TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "nats_size": (
        {"path": "bossnas/nats_ss_cifar10_accuracy.csv", "decisions": ["c1", "c2", "c3", "c4", "c5"]},
        "accuracy",
    ),
    "nas_bench_macro": ({"path": "nas/nas_bench_macro/nas_bench_macro_cifar10.csv.gz", "code": "arch"}, "mean_acc"),
    "accel_nasbench": ({"path": "nas/accel_nasbench/accel_nasbench_dev.csv.gz", "decisions": _BLOCKS}, "val_top1"),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {"name": "auto"},
    "local search": {"name": "local_search"},
    "aging P=20 S=10": {"name": "regularized_evolution", "population": 20, "sample": 10},
    "aging P=50 S=10": {"name": "regularized_evolution", "population": 50, "sample": 10},
    "REINFORCE": {"name": "reinforce"},
    "PPO": {"name": "ppo"},
    "Optuna TPE": {"name": "tpe"},
    "Optuna GP": {"name": "gp"},
    "Optuna CMA-ES": {"name": "cmaes"},
    "Optuna NSGA-II": {"name": "nsga2"},
    "Optuna NSGA-III": {"name": "nsga3"},
    "Optuna QMC": {"name": "qmc"},
    "random": {"name": "random"},
}


@cache
def load(options: tuple[tuple[str, Any], ...], metric: str) -> tuple[TableSpace, dict[Any, float]]:
    """Return the space and the accuracy of each architecture; rows that occur twice are averaged."""
    space = TableSpace(TableConfig(**{key: list(value) if key == "decisions" else value for key, value in options}))
    space.name = "table"
    values = space.table.numbers(metric)
    return space, {arch: float(np.mean([values[row] for row in space.rows_of(arch)])) for arch in space}


def run(task: tuple[tuple[tuple[str, Any], ...], str, dict[str, Any], int, int]) -> np.ndarray:
    """Return the best accuracy after 1, 2, ... evaluations of one study."""
    options, metric, strategy, seed, evaluations = task
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, accuracy = load(options, metric)
    top = max(accuracy.values())
    config = TypeAdapter(StrategyConfig).validate_python(strategy)
    context = StrategyContext(space, ("maximize",), evaluations, seed, candidates=space.candidates)
    study = optuna.create_study(direction="maximize", sampler=make_sampler(config, context))
    best = np.full(evaluations, top)
    found = -np.inf
    for number in range(evaluations):
        trial = study.ask()
        value = accuracy[space.suggest(trial)]
        study.tell(trial, value)
        found = best[number] = max(found, value)
        if found == top:
            break
    return best


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--evaluations", type=int, choices=AT, default=AT[-1], help="how long a run is")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--csv", help="another table, with --decisions (or --code) and --metric")
    parser.add_argument("--decisions", nargs="+", default=[])
    parser.add_argument("--code")
    parser.add_argument("--metric")
    arguments = parser.parse_args()
    at = AT[: AT.index(arguments.evaluations) + 1]
    print(
        f"{'table':16} {'strategy':16} "
        + "".join(f"{each:>8}" for each in at)
        + "   regret"
        + f"{'seconds a run':>{8 * len(at) + 6}}"
    )
    with ProcessPoolExecutor(arguments.processes) as pool:
        for table, options, metric in _tables(arguments):
            top = max(load(options, metric)[1].values())
            print(f"{table:16} {'best of the table':16} {top:.3f}")
            for name in arguments.strategies:
                started = time.perf_counter()
                tasks = [
                    (options, metric, STRATEGIES[name], seed, arguments.evaluations) for seed in range(arguments.seeds)
                ]
                mean = np.mean(list(pool.map(run, tasks)), axis=0)
                seconds = (time.perf_counter() - started) * arguments.processes / arguments.seeds
                figures = [mean[each - 1] for each in at]
                text = "".join(f"{value:8.2f}" for value in figures) + "".join(
                    f"{max(top - value, 0):8.3f}" for value in figures
                )
                print(f"{table:16} {name:16} {text}{seconds:9.1f}", flush=True)


def _tables(arguments: argparse.Namespace) -> Iterator[tuple[str, tuple[tuple[str, Any], ...], str]]:
    if arguments.csv is not None:
        given = {"path": arguments.csv, "decisions": tuple(arguments.decisions), "code": arguments.code}
        yield Path(arguments.csv).name[:16], tuple(given.items()), arguments.metric
        return
    folder = Path(os.environ["COMPRESS_DATA"])
    for name in arguments.tables:
        options, metric = TABLES[name]
        given = {**options, "path": str(folder / options["path"])}
        yield name, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in given.items()), metric


if __name__ == "__main__":
    main()
