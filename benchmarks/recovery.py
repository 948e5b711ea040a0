"""What distillation gives back: a pruned ResNet-56 by several losses, and ResNet-20 by MEAL V2, at equal updates.

    python benchmarks/recovery.py cifar10.npz weights/ --out runs/recovery [--study pruned meal_v2] [--epochs 10]
        [--seeds 0 1] [--only kd meal_v2] [--start RUN] [--device cuda] [--set data.limit_train=2000]

`weights/` holds resnet20.safetensors, resnet56.safetensors and resnet20_dense.safetensors, in any folders below it.

    pruned      ResNet-56 at half of its MACs by recipes/resnet56_cifar10.yaml, then its section `finetune`: on the
                labels alone (none), or with kd, dkd, meal_v2, feature, kd and feature. The dense network is the
                teacher; for meal_v2 ResNet-20 is another. With `--start` the bundle of that run, or bundle, is what
                they all start from.
    meal_v2     ResNet-20 goes on from its given weights by the section `distill` of recipes/meal_v2_cifar10.yaml: on
                the labels alone (none), with kd from ResNet-56, with meal_v2 from both teachers, with and without its
                discriminator.

Within a study start, images, their order and updates are the same for a seed. Weight decay is off for meal_v2, as
published, and 5e-4 for all others. What is killed goes on where it was when called again; what is finished is read
from --out, where recovery.csv has a line for every training. Prints a table for each study.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn
from training_once import Start, trained_once

import compress
from compress.bundle import Bundle, open_model
from compress.core.atomic import write_text
from compress.core.environment import choose_device
from compress.core.text_table import text_table
from compress.distill.finetune import FinetuneConfig
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.recipe_file import split_overrides
from evaluators.datasets import Data

STAGES = ["layer1", "layer2", "layer3"]
KD = {"loss": "kd", "temperature": 4, "weight": 1.0}
DKD = {"loss": "dkd", "temperature": 4, "alpha": 1.0, "beta": 2.0}  # beta as published for ResNet-56 and ResNet-20
FEATURE = {"loss": "feature", "layers": {stage: stage for stage in STAGES}}


@dataclass(frozen=True)
class Study:
    """A student with several ways to train it.

    `data` opens the images, whose order a seed decides; `student` builds what they all start from, `teacher` the model
    before compression; `arms` are the keys of the section `finetune` by which they differ from `settings`.
    """

    name: str
    data: Callable[[int], Data]
    student: Callable[[], Bundle]
    teacher: Callable[[], nn.Module]
    settings: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]


def weights(folder: Path, name: str) -> str:
    """Return where a file lies below `folder`."""
    found = sorted(folder.rglob(name))
    if not found:
        raise SystemExit(f"{folder} has no {name}")
    return str(found[0])


def resnet(depth: int, checkpoint: str, **more: Any) -> dict[str, Any]:
    """Return a model of a recipe."""
    return {"source": "builtin", "name": f"cifar_resnet{depth}", "checkpoint": checkpoint, **more}


def images(recipe: Recipe) -> Callable[[int], Data]:
    """Return what opens a recipe's images for a seed."""

    def opened(seed: int) -> Data:
        data = open_model(recipe.given_model, recipe.data, seed, recipe.task).data
        assert data is not None
        return data

    return opened


def pruned(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> Study:
    """Return the study of a pruned ResNet-56; it is pruned, unless it is given or lies in --out."""
    given = {"model.checkpoint": weights(arguments.weights, "resnet56.safetensors"), **overrides}
    recipe = load_recipe("resnet56_cifar10.yaml", given | {"finetune.epochs": arguments.epochs})
    place = arguments.start or arguments.out / "pruned" / "start"
    if arguments.start is None:
        alone = recipe.model_copy(update={"finetune": None, "export": None, "latency": None})
        compress.run(alone, out=place, resume=place.is_dir(), device=arguments.device)
    dense = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).bundle.model
    other = {"model": resnet(20, weights(arguments.weights, "resnet20.safetensors"))}
    arms = {
        "none": {"distill": None},
        "kd": {"distill": KD},
        "dkd": {"distill": DKD},
        "meal_v2": {"distill": {"loss": "meal_v2"}, "teachers": {"dense": {}, "other": other}, "weight_decay": 0},
        "feature": {"distill": FEATURE},
        "kd+feature": {"distill": [KD, FEATURE]},
    }
    settings = recipe.section("finetune").model_dump(mode="json")
    return Study("pruned", images(recipe), lambda: Bundle.load(place), lambda: dense, settings, arms)


def meal_v2(arguments: argparse.Namespace, overrides: Mapping[str, Any]) -> Study:
    """Return the study of ResNet-20."""
    files = {depth: weights(arguments.weights, f"resnet{depth}.safetensors") for depth in (20, 56)}
    teachers = {
        "deeper": {"model": resnet(56, files[56])},
        "other": {
            "model": resnet(20, weights(arguments.weights, "resnet20_dense.safetensors"), kwargs={"shortcut": "B"}),
            "mean": [0.5],
            "std": [0.5],
        },
    }
    decay = max(1, round(arguments.epochs * 34 / 60))
    given = {
        "model.checkpoint": files[20],
        "distill.teachers": teachers,
        "distill.epochs": arguments.epochs,
        "distill.decay_epochs": [decay],
        **overrides,
    }
    recipe = load_recipe("meal_v2_cifar10.yaml", given)

    def start() -> Bundle:
        return open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).bundle

    settings = recipe.section("distill").model_dump(mode="json", exclude={"loss", "teachers"})
    both = {"teachers": teachers, "weight_decay": 0}
    arms = {
        "none": {},
        "kd": {"distill": KD, "teachers": {"deeper": teachers["deeper"]}},
        "meal_v2": {"distill": {"loss": "meal_v2"}, **both},
        "meal_v2-off": {"distill": {"loss": "meal_v2", "discriminator": "off"}, **both},
    }
    return Study("meal_v2", images(recipe), start, lambda: start().model, settings | {"weight_decay": 5e-4}, arms)


STUDIES = {"pruned": pruned, "meal_v2": meal_v2}


def trained(study: Study, arm: str, seed: int, place: Path, device: str) -> dict[str, Any]:
    """Return the figures of one training, which is done, or gone on with, unless it is finished."""
    config = FinetuneConfig.model_validate({**study.settings, "evaluate_every": 0, **study.arms[arm]})
    data, bundle = study.data(seed), study.student()
    assert data.train is not None

    def start() -> Start:
        return Start(bundle.model, config, study.teacher() if config.needs_teacher else None)

    found = trained_once(place, start, data, seed=seed, device=device, before=True)
    updates = config.epochs * len(data.train)
    if found["updates"] != updates:
        raise SystemExit(f"{place} is of {found['updates']} updates, not {updates}; give another --out")
    return {"study": study.name, "arm": arm, "seed": seed, **found}


def finished(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of every training in --out."""
    for file in sorted(out.glob("*/*/seed*/figures.json")):
        study, arm, seed = file.parts[-4:-1]
        yield {"study": study, "arm": arm, "seed": int(seed.removeprefix("seed")), **json.loads(file.read_text())}


def write_csv(out: Path) -> None:
    """Write what is finished as recovery.csv."""
    rows, text = list(finished(out)), io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "recovery.csv", text.getvalue())


def table(rows: list[dict[str, Any]]) -> str:
    """Return one line for each arm: its seeds' accuracies, and their mean beside that of no teacher."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = {arm: [row["top1"] for row in rows if row["arm"] == arm] for arm in arms}
    lines = []
    for arm in arms:
        first = next(row for row in rows if row["arm"] == arm)
        gain = f"{mean(found[arm]) - mean(found['none']):+.2f}" if "none" in found else ""
        lines.append(
            [
                arm,
                f"{first['macs'] / 1e6:.1f}",
                str(first["updates"]),
                f"{first['top1_before']:.2f}",
                " ".join(f"{value:.2f}" for value in found[arm]),
                f"{mean(found[arm]):.2f}",
                gain,
                f"{mean(row['minutes'] for row in rows if row['arm'] == arm):.1f}",
            ]
        )
    return text_table(["loss", "MACs (M)", "updates", "before", "top-1", "mean", "to none", "minutes"], lines)


def main() -> None:
    """Train every arm with every seed, one after the other, and print a table for each study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", metavar="LOSS")
    parser.add_argument("--start", type=Path, help="what the study `pruned` starts from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change both recipes")
    arguments = parser.parse_args()
    arguments.device = choose_device(arguments.device)
    overrides = {"data.path": arguments.data, **split_overrides(arguments.set)}
    for name in arguments.study:
        study = STUDIES[name](arguments, overrides)
        rows = []
        for seed in arguments.seeds:
            for arm in study.arms:
                if arguments.only is None or arm in arguments.only:
                    place = arguments.out / name / arm / f"seed{seed}"
                    rows.append(trained(study, arm, seed, place, arguments.device))
                    print(rows[-1], flush=True)
                    write_csv(arguments.out)
        print(table(rows))


if __name__ == "__main__":
    main()
