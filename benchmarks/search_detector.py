"""Whether a search of detectors beats chance: its winner beside random detectors of the same latency.

    compress search --recipe search_detector_digits.yaml
    python benchmarks/search_detector.py runs/search_detector_digits              # eight random ones, 6 epochs each
    python benchmarks/search_detector.py runs/search_detector_digits --epochs 12  # as long as the recipe trains

Random architectures of the run's space are drawn until eight take between 1 - `--within` and 1 + `--within` times as
long as the winner, each timed by itself right after it. All are trained from scratch alike, by the recipe's section
`train` but for the epochs, and judged on the test images, which the search has never seen.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from compress.core.progress import hushed, set_quiet, track
from compress.runs.recipe import load_recipe
from compress.training.fit import fit
from evaluators.candidates.latency import MeasuredLatency, SearchLatency
from evaluators.tasks.evaluation import evaluate
from search.space import fitted, make_space
from spaces.architecture import Architecture
from spaces.registry import read_architecture
from spaces.space import Space

MACS = (0.5, 2.0)
"""Of the winner's: others are not worth timing."""


def alike(space: Space, winner: Architecture, folder: Path, count: int, within: float) -> dict[Architecture, float]:
    """Return the winner and `count` random architectures, each with its latency in terms of the winner's."""
    meter, generator = MeasuredLatency(SearchLatency(), space, folder), random.Random(1)
    macs, found, drawn = space.cost(winner)["macs"], {winner: 1.0}, 0
    meter.measure(winner)
    while len(found) <= count:
        arch = space.canonical(space.sample(generator))
        if arch in found or not MACS[0] < space.cost(arch)["macs"] / macs < MACS[1]:
            continue
        drawn += 1
        ratio = meter.measure(arch) / meter.measure_again(winner)
        if abs(ratio - 1) <= within:
            found[arch] = ratio
    print(f"{drawn} random detectors timed, of which {count} are within {within:.0%} of the winner's latency")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a finished search")
    parser.add_argument("--random", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--within", type=float, default=0.1)
    options = parser.parse_args()
    set_quiet(True)
    torch.set_num_threads(1)
    recipe = load_recipe(options.run / "recipe.yaml")
    space = make_space(recipe.section("search").space)
    data = fitted(space, recipe.data, recipe.task, recipe.seed)
    assert data is not None and data.test is not None
    _, winner = read_architecture(next((options.run / "stages").glob("*-search")) / "best1.json")
    with tempfile.TemporaryDirectory() as folder:
        found = alike(space, space.canonical(winner), Path(folder), options.random, options.within)
    train = recipe.section("train").model_copy(update={"epochs": options.epochs, "evaluate_every": 0})
    name, started = data.task.main_metric.name, time.process_time()
    table = Table("detector", "latency", "MMACs", data.task.main_metric.label)
    values = []
    for number, (arch, latency) in enumerate(track(found.items(), "training", total=len(found))):
        with torch.random.fork_rng(), hushed():
            torch.manual_seed(recipe.seed)
            model = space.build(arch)
            fit(model, data, train, seed=recipe.seed)
        values.append(evaluate(model, data.test, data.task)[name] or 0.0)
        about = f"random {number}" if number else "winner"
        table.add_row(about, f"{latency:.2f}", f"{space.cost(arch)['macs'] / 1e6:.1f}", f"{values[-1]:.2f}")
    Console().print(table)
    best, middle = values[0], statistics.median(values[1:])
    beaten = sum(best > value for value in values[1:])
    print(f"winner {best:.2f}, median of the random ones {middle:.2f}; it beats {beaten} of {len(values) - 1}")
    print(f"{time.process_time() - started:.0f} CPU seconds of training")


if __name__ == "__main__":
    main()
