"""N2N beside random removal, and policies of another teacher beside new ones, at equal students.

    python benchmarks/n2n.py [--recipe n2n_resnet18_digits.yaml] [--trials 100] [--seeds 3] [--out n2n_benchmark]
        [--other '{source: builtin, name: cifar_resnet20}'] [--only new random] [--device cuda]
        [--set search.evaluator.train.epochs=1 ...]

Three searches for each seed, each in a directory of its own: by n2n with new policies, at random over the same space,
and by n2n with the policies that a search with the teacher `--other` has learnt. Prints the mean reward R of each fifth
of the students, the best, how many times smaller the best one is, and its accuracy beside the teacher's. What an
earlier call has found is not done again: an interrupted benchmark goes on where it was, trial by trial.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from compress.core.progress import set_quiet
from compress.runs.recipe import load_recipe
from compress.runs.recipe_file import split_overrides
from search.job import SearchJob
from search.outcome import evaluated
from search.strategies.n2n_reward import reward
from search.study import architecture_of

PARTS = 5
WAYS = ["new", "random", "handed on"]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="n2n_resnet18_digits.yaml")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--other", default="{source: builtin, name: cifar_resnet20}", help="model of the other teacher")
    parser.add_argument("--out", type=Path, default=Path("n2n_benchmark"))
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS, help="searches that are run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    out = arguments.out.resolve()
    parts = [f"{1 + arguments.trials * part // PARTS}-" for part in range(PARTS)]
    print(
        f"{'policies':12} {'seed':>4} "
        + "".join(f"{part:>8}" for part in parts)
        + f"{'best':>8}{'smaller':>9}{'top-1':>8}{'teacher':>9}"
    )
    for seed in range(arguments.seeds):
        given = [*arguments.overrides, f"seed={seed}", f"search.trials={arguments.trials}"]
        other = out / f"other-{seed}"
        if "handed on" in arguments.only and not (other / "policies.safetensors").is_file():
            search(arguments.recipe, [*given, f"model={arguments.other}"], other, arguments.device)
        more = {
            "new": [],
            "random": ["search.strategy={name: random}"],
            "handed on": [f"search.strategy.policy={other}"],
        }
        for name in arguments.only:
            place = out / f"{name.replace(' ', '-')}-{seed}"
            found = search(arguments.recipe, [*given, *more[name]], place, arguments.device)
            print(f"{name:12} {seed:4} {row(found)}", flush=True)


def search(recipe: str, overrides: Sequence[str], directory: Path, device: str) -> list[tuple[float, ...]]:
    """Return reward, times smaller, its and the teacher's top-1 of every student in order; goes on with a search."""
    directory.mkdir(parents=True, exist_ok=True)
    loaded = load_recipe(recipe, split_overrides(list(overrides)))
    job = SearchJob(loaded.section("search"), loaded.data, loaded.model, "n2n", loaded.seed, device, directory)
    judge = job.judge()
    runner = job.open(judge)
    runner.revive()
    job.run(runner, None)
    leave = getattr(runner.study.sampler, "leave", None)
    if leave is not None:
        leave(runner.study, directory)
    space, teacher = judge.space, judge.evaluator.given()
    base = space.cost(space.check({decision.name: decision.choices[-1] for decision in space.decisions}))["params"]
    found: list[tuple[float, ...]] = []
    for trial in evaluated(runner.study):
        params = space.cost(space.check(architecture_of(trial), drop_untaken=True))["params"]
        worth = reward(params, trial.values[0], base, teacher["top1"])
        found.append((worth, base / params, trial.values[0], teacher["top1"]))
    return found


def row(found: Sequence[tuple[float, ...]]) -> str:
    """Return the figures of one search."""
    cuts = [len(found) * part // PARTS for part in range(PARTS + 1)]
    means = [fmean(each[0] for each in found[a:b]) if b > a else float("nan") for a, b in pairwise(cuts)]
    worth, smaller, accuracy, teacher = max(found)
    return "".join(f"{mean:8.3f}" for mean in means) + f"{worth:8.3f}{smaller:7.1f}x{accuracy:8.2f}{teacher:8.2f}"


if __name__ == "__main__":
    main()
