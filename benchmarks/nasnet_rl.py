"""The NASNet paper's controller beside random search: how the reward moves while candidates are really trained.

    python benchmarks/nasnet_rl.py [--seeds 3] [--trials 240] [--set search.strategy.learning_rate=1.0e-3 ...]

Runs the search of recipes/search_digits_nasnet_rl.yaml with its strategy and with Optuna's random sampler, as many
trials each, two searches at a time. Prints the mean reward (top-1 on held-out images, in percent) of each fifth of the
trials, the mean of the best ten, and the best.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from compress.core.progress import set_quiet
from compress.runs.recipe import load_recipe
from compress.runs.recipe_file import split_overrides
from search.job import SearchJob

RECIPE = "search_digits_nasnet_rl.yaml"
PARTS = 5


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    tasks = [
        (seed, arguments.trials, [*arguments.overrides, *chosen])
        for seed in range(arguments.seeds)
        for chosen in ([], ["search.strategy={name: random}"])
    ]
    parts = [f"{1 + arguments.trials * part // PARTS}-" for part in range(PARTS)]
    print(f"{'strategy':10} {'seed':>4} " + "".join(f"{part:>8}" for part in parts) + f"{'best 10':>9}{'best':>8}")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for (seed, trials, _), (strategy, rewards) in zip(tasks, pool.map(run, tasks), strict=True):
            cuts = [trials * part // PARTS for part in range(PARTS + 1)]
            means = [fmean(rewards[a:b]) for a, b in pairwise(cuts)]
            best = sorted(rewards)[-10:]
            figures = "".join(f"{mean:8.1f}" for mean in means)
            print(f"{strategy:10} {seed:4} {figures}{fmean(best):9.1f}{best[-1]:8.1f}", flush=True)


def run(task: tuple[int, int, list[str]]) -> tuple[str, list[float]]:
    """Return a search's strategy and its rewards, in the order of the trials."""
    seed, trials, overrides = task
    torch.set_num_threads(1)
    set_quiet(True)
    given = [*overrides, f"seed={seed}", f"search.trials={trials}", "search.executor={kind: local}"]
    recipe = load_recipe(RECIPE, split_overrides(given))
    search = recipe.section("search")
    with tempfile.TemporaryDirectory() as folder:
        job = SearchJob(search, recipe.data, None, recipe.name, seed, "cpu", Path(folder))
        runner = job.open()
        job.run(runner, None)
        rewards = [float(trial.value) for trial in runner.study.trials if trial.value is not None]
    return search.strategy.name, rewards


if __name__ == "__main__":
    main()
