"""This toolkit beside torch-pruning, NNI and simple rules at equal measured latency, on CIFAR-10 with given weights.

    python benchmarks/vs_peers.py cifar10.npz weights/ --out runs/vs_peers --epochs 0 [--networks resnet56 resnet20]
        [--ratios 1.5 2 3] [--seeds 0 1] [--only depth "torch-pruning l2"] [--limit-test 2000] [--csv FILE]

`weights/` holds the files named in vs_peers_networks.py, in any folders below it. Every arm chooses what goes; how much
is searched for until the network, as ONNX in ONNX Runtime, is as many times as fast as the dense one as was asked, or
as near as the arm comes: candidates are timed in turns with the dense network, whose CPU times count where the machine
is busy. All arms may remove the same widths, those that the width graph can narrow.

Every network then gets, from the same batches, batch norms estimated anew (`bn`), or instead this toolkit's
compensation (`compensated`), so that a better repair is not taken for a better choice. With `--epochs` both are
fine-tuned by the section `finetune` of recipes/resnet56_cifar10.yaml: peers from `bn`, this toolkit from
`compensated`, with equal updates.

One JSON file a row in --out: what is there is not done again. Prints a table, and writes it as csv where --csv says.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from vs_peers_arms import ARMS, LatencyArm, Scene, arm, available
from vs_peers_networks import NETWORKS

from compress.core.atomic import write_json, write_text
from compress.core.batch_norm import recalibrate
from compress.core.environment import emulates_bfloat16
from compress.core.errors import CompressError
from compress.core.progress import say
from compress.core.text_table import text_table
from compress.distill.finetune import FinetuneConfig
from compress.export.exporters import ExportConfig
from compress.export.quick import export_quickly
from compress.graph.apply import apply
from compress.graph.plan import Plan
from compress.prune.compensation.compensate import compensated
from compress.prune.kinds import Surroundings
from compress.prune.narrow import first_batches
from compress.runs.recipe import load_recipe
from compress.training.fit import fit
from evaluators.cost import count_macs
from evaluators.datasets.holdout import unaugmented
from evaluators.latency.measure import LatencyConfig, interleave
from evaluators.tasks.evaluation import evaluate

COLUMNS = (
    "network", "arm", "asked", "latency_ratio", "low", "high", "clock", "macs", "params", "dropped",
    "bn", "compensated", "trained", "epochs", "seed", "test_images", "strength", "search_cpu_seconds", "load",
)  # fmt: skip
NEAR, ROUNDS = 0.03, 2  # how near a latency ratio is to be, and rounds of candidates after the first
QUICK = LatencyConfig(runs=30, seconds=0.2, max_seconds=4, precision=0.04)
FINAL = LatencyConfig(runs=100, seconds=0.3, max_seconds=10, precision=0.02)
CALIBRATION, BN_BATCHES = 8, 8  # training batches of 128


@dataclass
class Candidate:
    """A plan, the strength that gave it, and its latency ratio (median, ci95, clock)."""

    plan: Plan
    ratio: dict[str, Any]
    strength: float

    @property
    def times(self) -> float:
        """How many times as fast as the dense network."""
        return float(self.ratio["median"])


class Stopwatch:
    """Times plans beside the dense network; every plan once for each precision."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder = scene, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.dense = self.exported(scene.model, "dense")

    def exported(self, model: nn.Module, name: str) -> Path:
        """Write a model as ONNX."""
        example = self.scene.bundle.example_inputs(2)
        return export_quickly(model, example, self.folder / f"{name}.onnx", self.scene.bundle.task).path

    def timed(self, plans: Sequence[Plan], config: LatencyConfig) -> list[dict[str, Any]]:
        """Return the ratio (median, ci95, clock) of each plan, all timed in turns with the dense network."""
        files = [self.exported(apply(plan, self.scene.model), f"small{n}") for n, plan in enumerate(plans)]
        return interleave([self.dense, *files], config).ratios


def searched(chosen: Any, asked: Sequence[float], watch: Stopwatch) -> list[Candidate]:
    """Return for each asked ratio the plan of an arm that comes nearest: a survey, rounds between, a last long look."""
    found: dict[float, Candidate] = {}
    wanted = list(chosen.strengths)
    for _ in range(ROUNDS + 1):
        plans = dict(planned(chosen, wanted))
        for strength, ratio in zip(plans, watch.timed(list(plans.values()), QUICK) if plans else (), strict=True):
            found[strength] = Candidate(plans[strength], ratio, strength)
        say(", ".join(f"{strength:g}: {found[strength].times:.2f}x" for strength in sorted(found)))
        if not found:
            raise CompressError("there is no plan at any strength")
        missing = [goal for goal in asked if abs(ranked(found, goal)[0].times / goal - 1) > NEAR / 2]
        wanted = [] if chosen.whole else [each for goal in missing for each in between(found, goal)]
        wanted = [each for each in dict.fromkeys(wanted) if each not in found]
        if not wanted:
            break
    last = {each.strength: each for goal in asked for each in ranked(found, goal)[:2]}
    ratios = watch.timed([each.plan for each in last.values()], FINAL)
    sure = {s: Candidate(last[s].plan, ratio, s) for s, ratio in zip(last, ratios, strict=True)}
    return [ranked(sure, goal)[0] for goal in asked]


def planned(chosen: Any, strengths: Sequence[float]) -> Iterator[tuple[float, Plan]]:
    """Yield the plans of these strengths, where there are any."""
    for strength in strengths:
        try:
            yield strength, chosen.plan(strength)
        except CompressError as error:
            say(f"no plan at {strength}: {error}")


def ranked(found: dict[float, Candidate], goal: float) -> list[Candidate]:
    """Return the candidates, those first whose ratio is nearest to the goal."""
    return sorted(found.values(), key=lambda each: abs(each.times / goal - 1))


def between(found: dict[float, Candidate], goal: float) -> list[float]:
    """Return a strength to try next, between the first two around the goal; none where no two are."""
    for low, high in pairwise(sorted(found)):
        slow, fast = found[low].times, found[high].times
        if slow < goal <= fast:
            share = min(max((goal - slow) / (fast - slow), 0.2), 0.8)
            return [round(low + share * (high - low), 3)]
    return []


def choices(name: str, scene: Scene, asked: Sequence[float], watch: Stopwatch, file: Path) -> list[dict[str, Any]]:
    """Return plan, strength and measured ratio of an arm for each asked ratio; kept in `file`."""
    if file.is_file():
        kept: list[dict[str, Any]] = json.loads(file.read_text())
        if [each["asked"] for each in kept] == list(asked):
            return kept
    began, chosen = time.process_time(), arm(name, scene)
    if isinstance(chosen, LatencyArm):
        plans = chosen.plans(asked)
        spent = time.process_time() - began
        found = [Candidate(*each, 0.0) for each in zip(plans, watch.timed(plans, FINAL), strict=True)]
    else:
        found = searched(chosen, asked, watch)
        spent = time.process_time() - began
    records = [
        {
            "asked": goal,
            "strength": each.strength,
            "plan": each.plan.to_dict(),
            "latency_ratio": round(each.times, 3),
            "low": round(each.ratio["ci95"][0], 3),
            "high": round(each.ratio["ci95"][1], 3),
            "clock": each.ratio["clock"],
            "search_cpu_seconds": round(spent, 1),
            "load": round(os.getloadavg()[0], 1),
        }
        for goal, each in zip(asked, found, strict=True)
    ]
    write_json(file, records)
    return records


def judged(scene: Scene, choice: dict[str, Any], ours: bool, epochs: int) -> dict[str, Any]:
    """Return accuracies of a plan: with batch norms estimated anew, compensated, and fine-tuned."""
    data, dense = scene.around.data, scene.model
    assert data is not None and data.train is not None and data.test is not None
    plan = Plan.from_dict(choice["plan"])
    renewed, repaired = (apply(plan, dense).eval() for _ in range(2))
    recalibrate(renewed, data.train.epoch(0), BN_BATCHES, forward=lambda model, b: data.task.forward(quick(model), b))
    batches = first_batches(replace(data, train=unaugmented(data.train)), CALIBRATION)
    assert batches is not None
    compensated(repaired, dense, plan, batches, data.task, seed=scene.around.seed)
    inputs = scene.bundle.example_inputs()
    row: dict[str, Any] = {
        "macs": round(count_macs(renewed, inputs) / count_macs(dense, inputs), 3),
        "params": round(sum(p.numel() for p in renewed.parameters()) / sum(p.numel() for p in dense.parameters()), 3),
        "dropped": len(plan.dropped),
        "bn": evaluate(quick(renewed), data.test, data.task)["top1"],
        "compensated": evaluate(quick(repaired), data.test, data.task)["top1"],
        "trained": None,
    }
    if epochs:
        recipe = load_recipe("resnet56_cifar10.yaml", {})
        config: FinetuneConfig = recipe.section("finetune").model_copy(update={"epochs": epochs, "evaluate_every": 0})
        start = repaired if ours else renewed
        fit(start, data, config, seed=scene.around.seed, teacher=copy.deepcopy(dense))
        row["trained"] = evaluate(quick(start), data.test, data.task)["top1"]
    return row


def quick(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return `model` in bfloat16 where the processor has it: 2.7 times as fast, and 0.1 points of accuracy apart."""
    native = not emulates_bfloat16("cpu")

    def forward(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=native):
            return cast(Tensor, model(images)).float()

    return forward


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return every row in --out, in the order of networks, ratios and arms."""
    rows = [json.loads(file.read_text()) for file in out.glob("*/rows/*.json")]
    names, arms = list(NETWORKS), ["dense", *ARMS]
    return sorted(rows, key=lambda r: (names.index(r["network"]), r["asked"], arms.index(r["arm"]), r["seed"]))


def written(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write rows as csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def main() -> None:
    """Run every arm that has no row yet, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=available())
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for network in given.networks:
        for seed in given.seeds:
            run(network, seed, given)
    rows = rows_of(given.out)
    if given.csv is not None:
        written(rows, given.csv)
    cells = [["-" if row[column] is None else str(row[column]) for column in COLUMNS] for row in rows]
    print(text_table(COLUMNS, cells, left=2))


def run(network: str, seed: int, given: argparse.Namespace) -> None:
    """Add the rows of one network and seed."""
    opened = NETWORKS[network].opened(given.images, given.weights, seed, given.limit_test)
    place = given.out / network
    around = Surroundings(opened.data, "cpu", seed, FINAL, ExportConfig(exporter="torchscript"))
    scene = Scene(opened.bundle, around)
    data = opened.data
    assert data is not None and data.test is not None
    common = {"network": network, "seed": seed, "epochs": given.epochs, "test_images": data.test.num_samples}
    file = place / "rows" / f"dense-s{seed}.json"
    if not file.is_file():
        top1 = evaluate(quick(scene.model), data.test, data.task)["top1"]
        known = {"arm": "dense", "asked": 1.0, "latency_ratio": 1.0, "macs": 1.0, "params": 1.0, "dropped": 0}
        file.parent.mkdir(parents=True, exist_ok=True)
        row = common | known | dict.fromkeys(("bn", "compensated", "trained"), top1)
        write_json(file, dict.fromkeys(COLUMNS) | row)
    for name in given.only:
        label = "".join(c if c.isalnum() else "_" for c in name)
        files = {ratio: place / "rows" / f"{label}-{ratio:g}-s{seed}-e{given.epochs}.json" for ratio in given.ratios}
        if all(file.is_file() for file in files.values()):
            continue
        watch = Stopwatch(scene, place / "onnx" / label)
        try:
            found = choices(name, scene, given.ratios, watch, place / f"{label}-s{seed}.json")
        except CompressError as error:
            say(f"{network}, {name}: {error}")
            continue
        for choice in found:
            if files[choice["asked"]].is_file():
                continue
            row = common | {"arm": name} | {key: choice[key] for key in COLUMNS if key in choice}
            row |= judged(scene, choice, ARMS[name][0] is LatencyArm, given.epochs)
            write_json(files[choice["asked"]], row)
            say(f"{network}, {name}: {row['latency_ratio']}x, bn {row['bn']}, compensated {row['compensated']}")


if __name__ == "__main__":
    main()
