"""How well ratings without labels rank NATS-Bench's sizes, beside single path trained for the same time.

    python benchmarks/bossnas_nats.py cifar10.npz nats_ss_cifar10_accuracy.csv --epochs 20 --out runs/bossnas_nats

Trains the three blocks of the size space without labels (BossNAS), `--epochs` for each, and compares the sum of block
losses of all networks with their stand-alone accuracies. Then trains single path on the same images for as long, and
compares the accuracies that `--scored` random networks inherit, and their ratings, with the same table. Killed, it goes
on where it was when it is called again. Figures are in OUT/figures.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

from compress.core.atomic import write_json
from compress.core.problems import validated
from evaluators.datasets import Data
from evaluators.datasets.holdout import with_holdout
from evaluators.datasets.npz import NpzConfig
from evaluators.tasks import DEFAULT
from search.supernets.block_ratings import METRIC, BlockRater
from search.supernets.method import SupernetConfig, SupernetContext, Training, seeded
from search.supernets.rank_quality import quality
from search.supernets.rating import AccuracyRater
from spaces.architecture import Architecture
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet


def main() -> None:
    """Train, rate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("table", type=Path, help="csv with c1 to c5 and accuracy")
    parser.add_argument("--out", type=Path, default=Path("runs/bossnas_nats"))
    parser.add_argument("--epochs", type=int, default=20, help="of each block")
    parser.add_argument("--limit", type=int, help="use so many images")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.48)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--scored", type=int, default=1000, help="networks that single path is judged on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    space, config = create("nats_size"), {"name": "npz", "path": args.images, "batch_size": args.batch}
    whole = validated(NpzConfig, {**config, "limit_train": args.limit}).load(DEFAULT, seed=args.seed)
    data = with_holdout(whole, 0.1, args.seed)
    space.default_task = data.task
    truth = table(args.table, space)

    method = {"name": "blockwise", "paths": {"kind": "fair"}, "hidden": args.hidden}
    lars = {"optimizer": "lars", "lr": args.lr, "weight_decay": 1e-6, "warmup_epochs": 0.05 * args.epochs}
    net, training = train(space, data, args, "blockwise", {"method": method, "epochs": args.epochs, **lars})
    assert training.ratings is not None
    rater = BlockRater(net.blocks(), training.ratings["blocks"])
    ratings = {arch: rater.free(arch)[METRIC] for arch in truth}
    figures: dict[str, Any] = {"blocks": training.details, "all": ranked(ratings, truth, "minimize")}

    sgd: dict[str, Any] = {"method": "single_path", "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}
    seconds = training.details["seconds_training"]
    probe = train(space, data, args, "probe", {**sgd, "epochs": 1})[1].details["seconds_training"]
    length = args.out / "single_path_epochs.json"
    if not length.is_file():  # what a resumed training goes by
        write_json(length, max(1, round(seconds / probe)))
    epochs = json.loads(length.read_text())
    net, training = train(space, data, args, "single_path", {**sgd, "epochs": epochs})
    figures["single_path"] = training.details
    accuracies = AccuracyRater(net, args.device, 4)
    drawn = random.Random(args.seed).sample(list(truth), args.scored)
    scores = {arch: accuracies.rate(arch, data)["top1"] for arch in drawn}
    figures["single path, of the scored"] = ranked(scores, truth, "maximize")
    figures["blockwise, of the scored"] = ranked({arch: ratings[arch] for arch in drawn}, truth, "minimize")
    write_json(args.out / "figures.json", figures)
    print(json.dumps(figures, indent=1))


def train(
    space: Space, data: Data, args: argparse.Namespace, name: str, settings: dict[str, Any]
) -> tuple[Supernet, Training]:
    """Train a supernet in its own folder, or go on there."""
    config = validated(SupernetConfig, settings)
    with seeded(args.seed):
        net = space.supernet(data.task)
    context = SupernetContext(config, data, args.device, args.seed, args.out / name, resume=True)
    return net, config.method.train(net, context)


def table(path: Path, space: Space) -> dict[Architecture, float]:
    """Return the accuracy of each network, in percent."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {space.parse([int(row[f"c{place}"]) for place in range(1, 6)]): float(row["accuracy"]) for row in rows}


def ranked(scores: dict[Architecture, float], truth: dict[Architecture, float], direction: Any) -> dict[str, Any]:
    """Return how well `scores` rank the networks."""
    return quality(list(scores.values()), [truth[arch] for arch in scores], direction).as_dict()


if __name__ == "__main__":
    main()
