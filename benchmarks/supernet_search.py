"""Is what a search finds on shared weights better than random networks of the same latency, each trained alone?

    python benchmarks/supernet_search.py cifar10.npz --out runs/supernet_search [--latency 0.12] [--trials 100]
        [--strategies auto regularized_evolution] [--random 8] [--epochs 60] [--train-epochs 100] [--seed 0]
        [--recipe spos_mobilenetv3_cifar10.yaml] [--device cuda] [--set data.limit_train=2000]

The section `supernet` of the recipe is trained once. Every strategy then searches with its weights for the best
accuracy at no more than `--latency` ms, measured here (without it: the median of nine random networks). Beside the
winners stand random networks whose latency is between 0.9 times the limit and the limit. All are trained by the section
`train` and judged on the test images. What is killed goes on where it was when called again; what is finished is read
from --out. Prints a row for each network, and each winner beside the median of the random ones.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from training_once import Start, trained_once

import compress
from compress.core.environment import choose_device
from compress.core.text_table import text_table
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.recipe_file import split_overrides
from compress.runs.search_result import as_model
from evaluators.candidates.latency import MeasuredLatency
from evaluators.datasets import Data
from search.space import fitted, make_space
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.zoo import build_model

SLACK = 0.9
"""Random networks take at least this share of the latency that is allowed."""


def run(recipe: Recipe, place: Path, device: str) -> Path:
    """Run a recipe in `place`, or go on there, unless it is finished."""
    compress.run(recipe, out=place, resume=place.is_dir(), device=device)
    return place


def random_networks(
    space: Space, meter: MeasuredLatency, limit: float, generator: random.Random
) -> Iterator[tuple[Architecture, float]]:
    """Yield random architectures that take nearly as long as is allowed, with their latency."""
    seen = set()
    while True:
        arch = space.canonical(space.sample(generator))
        if arch in seen:
            continue
        seen.add(arch)
        found = meter.measure(arch)
        if SLACK * limit <= found <= limit:
            yield arch, found


def started(space: Space, entry: dict[str, Any], recipe: Recipe, data: Data) -> Start:
    """Return a network with new weights, and its training."""
    model = build_model(as_model(space.name, entry), data.task, recipe.seed).module
    return Start(model, recipe.section("train").model_copy(update={"evaluate_every": 0}))


def main() -> None:
    """Train the supernet, search, train winners and random networks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="spos_mobilenetv3_cifar10.yaml")
    parser.add_argument("--latency", type=float, help="milliseconds allowed")
    parser.add_argument("--strategies", nargs="+", default=["auto", "regularized_evolution"])
    parser.add_argument("--trials", type=int, default=100, help="of each search")
    parser.add_argument("--random", type=int, default=8, help="networks beside the winners")
    parser.add_argument("--epochs", type=int, default=60, help="of the supernet")
    parser.add_argument("--train-epochs", type=int, default=100, help="of every network alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    device, out = choose_device(arguments.device), arguments.out
    given: dict[str, Any] = {
        "data.path": arguments.data,
        "seed": arguments.seed,
        "supernet.epochs": arguments.epochs,
        "train.epochs": arguments.train_epochs,
        **split_overrides(arguments.set),
    }
    whole = load_recipe(arguments.recipe, given)
    chosen = whole.section("search").space
    given |= {"export": None, "latency": None, "train": None}
    alone = {key: value for key, value in given.items() if not key.startswith("train.")}
    shared = load_recipe(
        arguments.recipe, alone | {"search": None, "supernet.space": chosen.model_dump(exclude_none=True)}
    )
    weights = run(shared, out / "supernet", device)
    space = make_space(chosen)
    data = fitted(space, whole.data, whole.task, whole.seed)
    assert data is not None

    def accuracy(entry: dict[str, Any], place: Path) -> float:
        """Return the accuracy on the test images of a network that is trained alone."""
        start = partial(started, space, entry, whole, data)
        return float(trained_once(place, start, data, seed=whole.seed, device=device)["top1"])

    meter = MeasuredLatency(whole.section("search").latency, space, out, whole.seed)
    generator = random.Random(arguments.seed)
    limit = arguments.latency or median(meter.measure(space.sample(generator)) for _ in range(9))
    rows: list[tuple[str, float, float]] = []
    for name in arguments.strategies:
        keys = {key: value for key, value in alone.items() if not key.startswith("supernet.")}
        keys |= {
            "supernet": None,
            "search.strategy": {"name": name},
            "search.objective": {"maximize": ["top1"], "constraints": {"latency_ms": {"max": limit}}},
            "search.evaluator.weights": str(weights.resolve()),
            "search.trials": arguments.trials,
        }
        place = run(load_recipe(arguments.recipe, keys), out / f"search-{name}", device)
        details = json.loads(next(place.glob("stages/*-search/details.json")).read_text())
        best = details["search"]["best"][0]
        rows.append((name, best["metrics"]["latency_ms"], accuracy(best, out / name)))
        print(*rows[-1], flush=True)
    for number, (arch, latency) in enumerate(
        islice(random_networks(space, meter, limit, generator), arguments.random), start=1
    ):
        place = out / f"random-{number}"
        rows.append((f"random {number}", latency, accuracy(space.to_dict(arch), place)))
        print(*rows[-1], flush=True)
    print(
        text_table(["network", "latency, ms", "top-1"], [[name, f"{ms:.4f}", f"{top:.2f}"] for name, ms, top in rows])
    )
    middle = median(top for name, _, top in rows if name.startswith("random "))
    for name, _, top in rows[: len(arguments.strategies)]:
        print(f"{name}: {top - middle:+.2f} to the median of the random ones, {middle:.2f}, at {limit:.4f} ms")


if __name__ == "__main__":
    main()
