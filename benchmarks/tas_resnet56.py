"""TAS on ResNet-56: is the shape that it finds worth more than others of the same MACs, trained the same way?

    python benchmarks/tas_resnet56.py cifar10.npz resnet56.safetensors --out runs/tas_benchmark
        [--search-epochs 80] [--epochs 100] [--seed 0] [--device cuda] [--only found uniform]
        [--set data.limit_train=2000]

By recipes/tas_resnet56_cifar10.yaml a shape is searched, unless it lies in --out. Every arm then gets the same number
of updates by the recipe's section `train`, from scratch, with and without ResNet-56 as teacher:

    found, found-distilled        the shape that TAS has found
    uniform, uniform-distilled    all convolutions narrowed alike, at full depth, as near to its MACs as widths allow
    dimap                         ResNet-56 with its weights, channels removed by DIMAP down to the same MACs, then
                                  trained by the section `finetune` of recipes/resnet56_cifar10.yaml for as long

What is killed goes on where it was when called again; what is finished is read from --out. Prints one table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from training_once import Start, trained_once

import compress
from compress.bundle import Bundle, open_model
from compress.core.environment import choose_device
from compress.core.text_table import text_table
from compress.graph.apply import apply
from compress.prune.structure import Setting, plan_structure, prunable
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.recipe_file import split_overrides
from compress.training.config import TrainConfig
from compress.training.supervised import SupervisedConfig
from evaluators.tasks import Task
from evaluators.tasks.evaluation import evaluate
from spaces.architecture import Architecture
from spaces.registry import create
from spaces.resnet_shapes import ResNetShapesSpace
from spaces.resnet_shapes.shape import width_choices
from spaces.zoo import build_model


def searched(recipe: Recipe, out: Path, device: str) -> dict[str, Any]:
    """Return what the stage `supernet` tells of its search; it is run, or gone on with, unless it is finished."""
    alone = recipe.model_copy(update={"train": None, "export": None, "latency": None})
    place = out / "search"
    compress.run(alone, out=place, resume=place.is_dir(), device=device)
    details: dict[str, Any] = json.loads((place / "stages" / "01-supernet" / "details.json").read_text())
    return details


def uniform(space: ResNetShapesSpace, macs: int, task: Task) -> Architecture:
    """Return the network of full depth, with the same place among the widths everywhere, that is nearest to `macs`."""
    largest = space.largest()
    shapes = []
    for place in range(len(width_choices(16))):
        narrowed = {d.name: largest[d.name] if d.name.endswith("depth") else d.choices[place] for d in space.decisions}
        shapes.append(space.check(narrowed))
    return min(shapes, key=lambda arch: abs(space.cost(arch, task)["macs"] - macs))


def arms(
    recipe: Recipe, bundle: Bundle, task: Task, found: Architecture, macs: int
) -> Mapping[str, Callable[[], Start]]:
    """Return by name what makes the network of an arm, how it is trained, and its teacher."""
    space = create("resnet_shapes", {"depth": 56})
    assert isinstance(space, ResNetShapesSpace)
    teacher, distilled = bundle.model, recipe.section("train")
    alone = distilled.model_copy(update={"step": SupervisedConfig()})

    def built(arch: Architecture, how: TrainConfig, learns_from: nn.Module | None) -> Start:
        kwargs = {"options": {"depth": 56}, "arch": dict(arch)}
        config = recipe.given_model.model_copy(
            update={"source": "space", "name": "resnet_shapes", "kwargs": kwargs, "checkpoint": None}
        )
        return Start(build_model(config, task, recipe.seed).module, how, learns_from)

    def pruned() -> Start:
        share = macs / bundle.costs()["macs"]
        config = load_recipe("resnet56_cifar10.yaml", pruning | {"prune.budget.macs": share}).section("prune")
        model, inputs = bundle.model.cpu(), bundle.example_inputs()  # a teacher has been where the student learns
        plan = plan_structure(model, prunable(model, inputs, config), inputs, config, Setting(multiple=1))
        return Start(apply(plan, model), finetune, teacher)

    given = {"data.path": recipe.data.path, "model.checkpoint": recipe.given_model.checkpoint}  # type: ignore[attr-defined]
    pruning = {**given, "prune.align": 1}
    epochs = {"finetune.epochs": distilled.epochs, "finetune.precision": distilled.precision}
    finetune = load_recipe("resnet56_cifar10.yaml", given | epochs).section("finetune")
    other = uniform(space, macs, task)
    return {
        "found": partial(built, found, alone, None),
        "found-distilled": partial(built, found, distilled, teacher),
        "uniform": partial(built, other, alone, None),
        "uniform-distilled": partial(built, other, distilled, teacher),
        "dimap": pruned,
    }


def main() -> None:
    """Search, train the arms one after the other, and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--search-epochs", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", metavar="ARM")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    arguments = parser.parse_args()
    overrides: dict[str, Any] = {
        "data.path": arguments.data,
        "model.checkpoint": arguments.checkpoint,
        "seed": arguments.seed,
        "supernet.epochs": arguments.search_epochs,
        "train.epochs": arguments.epochs,
        "train.evaluate_every": 0,
    }
    recipe = load_recipe("tas_resnet56_cifar10.yaml", overrides | split_overrides(arguments.set))
    device = choose_device(arguments.device)
    details = searched(recipe, arguments.out, device)
    opened = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task)
    data, bundle = opened.data, opened.bundle
    assert data is not None and data.test is not None
    whole = {
        **{key: bundle.costs()[key] for key in ("macs", "params")},
        "top1": evaluate(bundle.model.to(device), data.test, data.task, device)["top1"],
    }
    bundle.model.cpu()
    told = details["supernet"]
    space = create("resnet_shapes", {"depth": 56})
    chosen = arms(recipe, bundle, data.task, space.check(details["found"]["choices"]), told["macs"])
    rows = {"ResNet-56": whole}
    for name, arm in chosen.items():
        if arguments.only is None or name in arguments.only:
            rows[name] = trained_once(arguments.out / name, arm, data, seed=recipe.seed, device=device)
            print(name, rows[name], flush=True)
    print(f"found {told['code']}, band {told['band']}, within it: {told['within_band']}")
    header = ["network", "MACs (M)", "share", "params (M)", "updates", "top-1", "minutes"]
    table = [
        [
            name,
            f"{row['macs'] / 1e6:.1f}",
            f"{row['macs'] / whole['macs']:.3f}",
            f"{row['params'] / 1e6:.3f}",
            str(row.get("updates", "")),
            f"{row['top1']:.2f}",
            str(row.get("minutes", "")),
        ]
        for name, row in rows.items()
    ]
    print(text_table(header, table))


if __name__ == "__main__":
    main()
