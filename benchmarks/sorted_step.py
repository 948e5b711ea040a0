"""What one update of sorted training costs beside its members' own updates, and its memory beside the full network's.

    python benchmarks/sorted_step.py                   # all models, a few minutes
    python benchmarks/sorted_step.py resnet20 --members 2

An update draws some members (two of 60 by default, each of which sees the whole batch), runs each forward and backward,
and steps once. Beside it each of these members, cut out, makes an update of its own with the same optimiser on the same
batch; both take turns, in random order, in one process on one thread, and times are CPU times. The ratio is the median
over updates with a bootstrap interval.

Memory is that of processes of their own: how much the resident set grows at most from before the model to after four
updates, of sorted training and of the full network's own training.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compress.bundle import Bundle, open_model
from compress.core.progress import track
from compress.sorted.config import SortConfig
from compress.sorted.step import SortedStep
from compress.sorted.training import Nested, nested
from compress.training.config import LearningConfig, TrainConfig
from compress.training.step import StepContext, TrainingStep
from compress.training.supervised import Supervised
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from spaces.zoo import ModelConfig

SMALL = {"input_size": (3, 32, 32), "kwargs": {"num_classes": 10}}
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"source": "builtin", "name": "cifar_resnet20"},
    "resnet56": {"source": "builtin", "name": "cifar_resnet56"},
    "mobilenetv3": {"name": "mobilenetv3_small_100", **SMALL},
    "vit": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {"img_size": 32, "patch_size": 4, "depth": 6, "num_classes": 10},
    },
}
SETTINGS: dict[str, Any] = {"epochs": 1, "optimizer": "momentum", "lr": 1e-4, "weight_decay": 5e-4, "warmup_epochs": 0}


def opened(name: str) -> tuple[Bundle, Nested, SortConfig]:
    """Return a model with 60 nested sub-networks."""
    bundle = open_model(ModelConfig.model_validate(MODELS[name]), seed=0).bundle
    config = SortConfig(**SETTINGS, members=60)
    return bundle, nested(bundle, config, seed=0), config


def updater(model: torch.nn.Module, step: TrainingStep, config: LearningConfig) -> Updater:
    """Return what makes updates of a model in training mode."""
    made = Updater(model, step, config, device="cpu", seed=0, batches=1000)
    made.train()
    return made


def supervised(bundle: Bundle, config: LearningConfig) -> Supervised:
    """Return the loss of one network."""
    data: Any = type("Data", (), {"task": bundle.task, "train": None, "test": None})()
    return Supervised(StepContext(config, data))


def batch_of(bundle: Bundle, count: int) -> Batch:
    """Return random images."""
    return Batch(torch.randn(count, *bundle.task.input_size), torch.randint(bundle.task.num_outputs, (count,)))


def times(name: str, count: int, updates: int, batch_size: int) -> list[tuple[float, float]]:
    """Return seconds of an update, and of its members' own updates, for every update."""
    bundle, found, config = opened(name)
    batch, generator = batch_of(bundle, batch_size), random.Random(0)
    drawn = [generator.choices(found.members, k=count) for _ in range(updates)]
    alone = [
        [updater(found.network.extract(arch), supervised(bundle, config), TrainConfig(**SETTINGS)) for arch in members]
        for members in drawn
    ]
    waiting = iter([members for members in drawn for _ in range(3)])
    step = SortedStep(supervised(bundle, config), lambda _: next(waiting), "repeat", seed=0)
    shared = updater(found.network, step, config)
    pairs = []
    for number, others in enumerate(track(alone, name)):
        seconds: list[list[float]] = [[], []]
        for _ in range(3):
            for place in generator.sample(range(2), 2):
                started = time.process_time()
                for each in (others, [shared])[place]:
                    each.update(batch, number)
                seconds[place].append(time.process_time() - started)
        pairs.append((min(seconds[1]), min(seconds[0])))
    return pairs


def grown(name: str, kind: str, count: int, batch_size: int, answer: Any) -> None:
    """Put into `answer` by how many bytes this process has grown at most."""
    torch.set_num_threads(1)
    bundle, found, config = opened(name)
    batch, generator = batch_of(bundle, batch_size), random.Random(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak()
    if kind == "sorted":
        drawn = iter(
            [[found.network.full, found.members[0]], *(generator.choices(found.members, k=count) for _ in range(9))]
        )
        made = updater(
            found.network, SortedStep(supervised(bundle, config), lambda _: next(drawn), "repeat", 0), config
        )
    else:
        made = updater(copy.deepcopy(bundle.model), supervised(bundle, config), config)
    for number in range(6):
        made.update(batch, number)
    answer.put(peak() - before)


def peak() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def memory(name: str, kind: str, count: int, batch_size: int) -> int:
    """Return by how many bytes a new process grows at most while it trains."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc gives what is freed back at once, else sizes add up
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=grown, args=(name, kind, count, batch_size, answer))
    process.start()
    process.join()
    found: int = answer.get()
    return found


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the median and the ends of its 95 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[49], medians[1949]


def main() -> None:
    """Measure the models one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; none: all")
    parser.add_argument("--members", type=int, default=2, help="of an update")
    parser.add_argument("--updates", type=int, default=12, help="updates that are timed, each three times")
    parser.add_argument("--batch", type=int, default=64, help="images per update")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table(title=f"{arguments.members} members an update, batch {arguments.batch}, one thread, CPU time")
    for column in ("model", "members alone, ms", "sorted, ms", "ratio", "full, MB", "sorted, MB", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in arguments.models or MODELS:
        pairs = times(name, arguments.members, arguments.updates, arguments.batch)
        centre, low, high = interval([ours / theirs for ours, theirs in pairs])
        full, ours = (memory(name, kind, arguments.members, arguments.batch) for kind in ("full", "sorted"))
        table.add_row(
            name,
            f"{1e3 * statistics.median(theirs for _, theirs in pairs):.1f}",
            f"{1e3 * statistics.median(mine for mine, _ in pairs):.1f}",
            f"{centre:.3f} [{low:.3f}, {high:.3f}]",
            f"{full / 2**20:.0f}",
            f"{ours / 2**20:.0f}",
            f"{ours / full:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
