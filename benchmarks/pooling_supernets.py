"""Do mixtures of supernets rank ResNet-20's 36 pooling placements as training each of them alone does?

    python benchmarks/pooling_supernets.py cifar10.npz resnet20_cifar10_36_configurations.csv --out pooling
        [--models 1 2 4] [--seeds 0 1] [--epochs 100] [--limit 4000] [--judged 2000] [--set supernet.lr=0.05]

Mixtures of different sizes make the same updates (section `supernet` of recipes/bms_pooling_cifar10.yaml, with norms as
published unless `--set` says otherwise). Each placement is then judged by every model on held-out training images. The
folder `--out` gets `scores.csv` (the whole tables) and `summary.csv` (rank quality against the accuracies trained
alone, the pick, its true rank and its regret). Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.core.atomic import write_json, write_text
from compress.core.environment import settle_threads
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.recipe_file import split_overrides
from evaluators.datasets import Data
from evaluators.datasets.holdout import with_holdout
from evaluators.datasets.loaders import ArrayLoader
from search.space import fitted, make_space
from search.supernets.method import SupernetContext, seeded
from search.supernets.mixture import MixtureSupernet
from search.supernets.rank_quality import quality
from spaces.pooling import PoolingSpace

Row = dict[str, Any]


def main() -> None:
    """Train and judge every mixture, then write and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="CIFAR-10 as .npz")
    parser.add_argument("truth", type=Path, help="the published table of the 36 placements")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 2, 4], help="supernets of the mixtures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=100, help="passes over the half that weights learn from")
    parser.add_argument("--limit", type=int, help="training images, both halves together; default: all")
    parser.add_argument("--judged", type=int, help="held-out images that judge the placements; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="flags", metavar="KEY=VALUE")
    given = parser.parse_args()
    with given.truth.open() as file:
        table = list(csv.DictReader(file))
    truth = [float(row["baseline_avg"]) for row in table]
    scores: list[Row] = []
    summary: list[Row] = []
    for seed in given.seeds:
        for models in given.models:
            run = {"models": models, "seed": seed, "epochs": given.epochs, "images": given.limit or "all"}
            told, accuracies = mixture(given, models, seed)
            scores += [run | row for row in accuracies]
            summary.append(run | told | ranked([row["mean"] for row in accuracies], truth, table))
            write_rows(given.out / "scores.csv", scores)
            write_rows(given.out / "summary.csv", summary)
            print(json.dumps(summary[-1]), flush=True)


def mixture(given: argparse.Namespace, models: int, seed: int) -> tuple[Row, list[Row]]:
    """Train a mixture, or go on with it; return figures of the training, and the accuracies of each placement."""
    recipe = settings(given, models, seed)
    config = recipe.section("supernet")
    space = make_space(recipe.section("search").space)
    assert isinstance(space, PoolingSpace)
    whole = fitted(space, recipe.data, recipe.task, seed)
    assert whole is not None
    data = with_holdout(whole, config.holdout, seed)
    settle_threads(space.cost(next(iter(space)))["macs"] * data.train.batch_size if data.train else 0)
    with seeded(seed):
        supernet = config.method.make(space, data.task)
    folder = given.out / f"models{models}_seed{seed}"
    training = config.method.train(supernet, SupernetContext(config, data, given.device, seed, folder, resume=True))
    told = {"updates": sum(training.details["updates_of_models"]), **training.details}
    return told, judged(
        supernet, part(data, given.judged), space, recipe, given.device, folder / f"scores_{given.judged or 'all'}.json"
    )


def settings(given: argparse.Namespace, models: int, seed: int) -> Recipe:
    """Return the recipe with this mixture in it."""
    overrides = {
        "data.path": given.images,
        "data.limit_train": given.limit,
        "seed": seed,
        "supernet.epochs": given.epochs,
        "supernet.method.models": models,
        "search.space.options.norm": "batch_statistics",
    }
    return load_recipe("bms_pooling_cifar10.yaml", overrides | split_overrides(given.flags))


def part(data: Data, count: int | None) -> Data:
    """Return `data` with only the first held-out images, which are in random order."""
    if count is None:
        return data
    assert isinstance(data.test, ArrayLoader)
    fewer = copy.copy(data.test)
    fewer.images, fewer.labels = fewer.images[:count], fewer.labels[:count]
    fewer.num_samples = len(fewer.images)
    return replace(data, test=fewer)


def judged(
    supernet: MixtureSupernet, data: Data, space: PoolingSpace, recipe: Recipe, device: str, path: Path
) -> list[Row]:
    """Return the accuracy of each placement in each model; what is in `path` is not computed again."""
    rater = recipe.section("supernet").method.rater(
        None, supernet, device, recipe.section("search").evaluator.recalibrate
    )
    rows: list[Row] = json.loads(path.read_text()) if path.is_file() else []
    started = time.monotonic()
    for number, arch in enumerate(space, start=1):
        if number <= len(rows):
            continue
        found = rater.rate(arch, data)
        each = {name.removeprefix("top1_"): value for name, value in found.items() if name.startswith("top1_")}
        rows.append(
            {"index": number, "segments": "-".join(map(str, space.to_code(arch))), "mean": found["top1"], **each}
        )
        write_json(path, rows)
    print(f"judged {len(rows)} placements in {time.monotonic() - started:.0f} s", flush=True)
    return rows


def ranked(scores: list[float], truth: list[float], table: list[dict[str, str]]) -> Row:
    """Return the rank quality, and what is known of the placement with the best score."""
    found = quality(scores, truth)
    pick = max(range(len(scores)), key=lambda place: scores[place])
    low, high = found.spearman_ci95 or (None, None)
    return {
        "spearman": found.spearman,
        "spearman_low": low,
        "spearman_high": high,
        "kendall": found.kendall,
        "pearson": found.pearson,
        "pick": "-".join(table[pick][f"block{segment}"] for segment in (1, 2, 3)),
        "rank_of_pick": 1 + sum(value > truth[pick] for value in truth),
        "regret_of_pick": found.regret[1],
        "regret_of_five": found.regret[5],
    }


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a table; columns that a row lacks are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    main()
