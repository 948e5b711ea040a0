"""Members of a sorted family beside networks of their own: trained alone, and pruned from the dense network.

    python benchmarks/sorted_family.py cifar10.npz --out runs/sorted_family [--epochs 60] [--sort-epochs 60]
        [--recipe sortednet_mobilenetv3_cifar10.yaml] [--shares 0.25 0.5 0.75] [--device cuda]
        [--set data.limit_train=2000]

Runs the recipe (training, then sorted training), unless its family lies in --out. For every share of the full network's
MACs the best member within it is taken, as `compress pick --macs` does, and beside it are trained

    alone    a network of the member's shape with new weights, by the recipe's section `train`, for as many updates as
             the family had in both trainings
    pruned   the network as it was before the sorted training, pruned to the member's MACs by DIMAP with compensation,
             then fine-tuned by the settings, the distillation and as many updates as the sorted training had

What is killed goes on where it was when called again; what is finished is read from --out. Prints the family's figures
and one row for each share, and writes the rows as sorted_family.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from training_once import Start, trained_once

import compress
from compress.bundle import Bundle, open_model
from compress.core.atomic import write_text
from compress.core.environment import choose_device
from compress.core.text_table import text_table
from compress.distill.finetune import FinetuneConfig
from compress.picking.members import Member
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.recipe_file import split_overrides
from compress.sorted.family import Family
from compress.sorted.training import nested
from evaluators.tasks.evaluation import evaluate

SHARED = ("optimizer", "lr", "weight_decay", "epochs", "precision", "channels_last", "label_smoothing", "clip_grad")
"""Settings of the section `sort` by which the pruned networks are fine-tuned."""


def family_of(recipe: Recipe, out: Path, device: str) -> Family:
    """Return the family, whose trainings are run, or gone on with, unless they are finished."""
    place = out / "family_run"
    if Family.folder_in(place) is None:
        compress.run(recipe, out=place, resume=place.is_dir(), device=device)
    return Family.load(place)


def within(family: Family, share: float) -> Member:
    """Return the best member that has at most this share of the full network's MACs."""
    found = [member for member in family.members if member.macs <= share * family.full.macs]
    if not found:
        smallest = min(member.macs for member in family.members) / family.full.macs
        raise SystemExit(f"no member has {share} of the MACs; the smallest has {smallest:.3f}")
    return max(found, key=lambda member: (member.metrics["top1"] or 0.0, -member.macs))


def alone(recipe: Recipe, member: Member) -> Start:
    """Return a network of the member's shape with new weights, and its training."""
    bundle = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).bundle
    network = nested(bundle, recipe.section("sort"), recipe.seed).network
    config = recipe.section("train")
    epochs = config.epochs + recipe.section("sort").epochs
    return Start(network.extract(member.arch), config.model_copy(update={"epochs": epochs, "evaluate_every": 0}))


def pruned(dense: Bundle, recipe: Recipe, alone: Recipe, place: Path, device: str) -> Start:
    """Return the dense network pruned as `alone` says, and its fine-tuning."""
    compress.run(alone, out=place / "start", resume=(place / "start").is_dir(), device=device)
    sorting = recipe.section("sort")
    settings = {key: getattr(sorting, key) for key in SHARED} | {"distill": sorting.distill, "evaluate_every": 0}
    config = FinetuneConfig.model_validate(settings)
    return Start(Bundle.load(place / "start").model, config, dense.model if config.needs_teacher else None)


def main() -> None:
    """Train the family and the networks beside it, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="sortednet_mobilenetv3_cifar10.yaml")
    parser.add_argument("--epochs", type=int, default=60, help="of the training before")
    parser.add_argument("--sort-epochs", type=int, default=60)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="of the full MACs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    overrides: dict[str, Any] = {
        "data.path": arguments.data,
        "train.epochs": arguments.epochs,
        "sort.epochs": arguments.sort_epochs,
        "export": None,
        "latency": None,
    }
    overrides |= split_overrides(arguments.set)
    recipe = load_recipe(arguments.recipe, overrides)
    device, out = choose_device(arguments.device), arguments.out
    family = family_of(recipe, out, device)
    data = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).data
    assert data is not None and data.test is not None
    place = next((out / "family_run" / "stages").glob("*-dense")) / "bundle"
    dense = Bundle.load(place)
    before = evaluate(dense.model.to(device), data.test, data.task, device)["top1"]
    dense.model.cpu()
    tops = [member.metrics["top1"] or 0.0 for member in family.members]
    full = family.full.metrics["top1"] or 0.0
    print(f"{len(tops)} members; the full network {before:.2f} before and {full:.2f} after the sorted training")
    print(f"mean of all {mean(tops):.2f}, {100 * mean(tops) / full:.1f} % of the full one's; least {min(tops):.2f}")
    rows = []
    for share in arguments.shares:
        member = within(family, share)
        model = {"source": "bundle", "name": str(place.resolve())}
        budget = {"macs": member.macs / dense.costs()["macs"]}
        prune = {"kind": "structure", "criterion": "dimap", "budget": budget}
        given = {key: value for key, value in overrides.items() if not key.startswith(("model", "train", "sort"))}
        pruning = load_recipe(arguments.recipe, given | {"model": model, "train": None, "sort": None, "prune": prune})
        ways = {
            "alone": partial(alone, recipe, member),
            "pruned": partial(pruned, dense, recipe, pruning, out / f"pruned-{share}", device),
        }
        row = {"share": share, "macs": member.macs, "params": member.params, "member": member.metrics["top1"]}
        for name, make in ways.items():
            found = trained_once(out / f"{name}-{share}", make, data, seed=recipe.seed, device=device)
            row |= {name: found["top1"], f"{name}_macs": found["macs"], f"{name}_updates": found["updates"]}
        rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(out / "sorted_family.csv", text.getvalue())
    keys = list(rows[0])
    print(text_table(keys, [[str(row[key]) for key in keys] for row in rows]))


if __name__ == "__main__":
    main()
