"""What weight sharing costs: one training step of a sampled path in the supernet beside the same network built alone.

    python benchmarks/supernet_step.py                        # all spaces
    python benchmarks/supernet_step.py hytra pooling --networks 3 --pairs 5 --profile
    python benchmarks/supernet_step.py --device cuda --precision bf16 --batch 128

A step is forward, loss, backward, SGD with momentum and `zero_grad`; in the supernet also the activation of the path,
coming from another one. Both start from the same weights and take steps in turns, in random order, in one process on
one thread; times are CPU times, which other work on the machine moves far less, and wall clock on a GPU. The ratio is
the median over networks and pairs, its interval a bootstrap over networks and the pairs within them. `--profile` prints
for every space where the supernet's time goes, operator by operator, beside the network alone.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.core.progress import track
from spaces.architecture import Architecture
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "nasnet": ("nasnet", {"cells_per_stage": 1, "filters": 8}),
    "mobilenetv3 tiny": (
        "mobilenetv3",
        {"skeleton": "tiny", "dataset": "cifar", "kernels": (3, 5), "strides": (2, 1, 1, 2, 2)},
    ),
    "mobilenetv3": ("mobilenetv3", {"dataset": "cifar"}),
    "mnasnet": ("mnasnet", {"stem_stride": 1, "strides": (1, 1, 2, 2, 1, 2, 1)}),
    "nas_bench_macro": ("nas_bench_macro", {}),
    "hytra tiny": (
        "hytra",
        {"layers": 4, "blocks": 2, "channels": (16, 32, 64), "head_dim": 8, "stem": "cifar", "stem_channels": 16},
    ),
    "hytra": (
        "hytra",
        {"layers": 12, "channels": (64, 128, 256, 512), "head_dim": 32, "stem": "cifar", "stem_channels": 32},
    ),
    "pooling": ("pooling", {}),
    "channels": ("channels", {"depth": True}),
    "nats_size": ("nats_size", {}),
    "nas_bench_201": ("nas_bench_201", {}),
    "darts": ("darts", {"channels": 16, "layers": 8, "norm": "search"}),
}
"""Sizes at which these spaces are searched on images of 32 pixels."""

CLASSES = 10
SIZE = 32


@dataclass
class Contestant:
    """A module with its optimiser; a supernet takes every step on `arch`, coming from `other`."""

    module: nn.Module
    precision: str = "32"
    arch: Architecture | None = None
    other: Architecture | None = None
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.SGD(self.module.train().parameters(), lr=1e-3, momentum=0.9)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Take one training step and return its time in seconds."""
        if isinstance(self.module, Supernet) and self.other is not None:
            self.module.activate(self.other)
        started = _now(images.device)
        if isinstance(self.module, Supernet) and self.arch is not None:
            self.module.activate(self.arch)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.module(images)
        logits = output[0] if isinstance(output, tuple) else output
        cross_entropy(logits.float(), labels).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return _now(images.device) - started


def _now(device: torch.device) -> float:
    """Return CPU seconds, or wall clock once a GPU has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Measured:
    """Seconds of steps in the supernet and alone, pair by pair, for every network."""

    shared: list[list[float]]
    alone: list[list[float]]

    def ratios(self) -> list[list[float]]:
        """Return supernet / alone for every network and pair."""
        return [
            [ours / theirs for ours, theirs in zip(*each, strict=True)]
            for each in zip(self.shared, self.alone, strict=True)
        ]

    def interval(self, draws: int = 2000) -> tuple[float, float, float]:
        """Return the median ratio and the ends of its 95 % bootstrap interval."""
        ratios, generator = self.ratios(), random.Random(0)
        medians = []
        for _ in range(draws):
            networks = generator.choices(ratios, k=len(ratios))
            medians.append(statistics.median(r for each in networks for r in generator.choices(each, k=len(each))))
        medians.sort()
        centre = statistics.median(ratio for each in ratios for ratio in each)
        return centre, medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]


def main() -> None:
    """Measure the spaces one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", metavar="SPACE", help=f"of {', '.join(OPTIONS)}; none: all")
    parser.add_argument("--networks", type=int, default=6, help="random architectures per space")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of steps per architecture")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    unknown = set(arguments.spaces) - set(OPTIONS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(OPTIONS)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(arguments.batch, 3, SIZE, SIZE), torch.randint(CLASSES, (arguments.batch,))
    batch = images.to(arguments.device), labels.to(arguments.device)
    how = "one thread, CPU time" if arguments.device == "cpu" else f"{arguments.device}, {arguments.precision}"
    table = Table(title=f"one training step, batch {arguments.batch}, {SIZE} x {SIZE}, {how}")
    for column in ("space", "networks x pairs", "alone, ms", "supernet, ms", "supernet / alone", "slowest network"):
        table.add_column(column, justify="left" if column == "space" else "right")
    for label in arguments.spaces or OPTIONS:
        name, options = OPTIONS[label]
        table.add_row(label, *_cells(_measure(label, create(name, options), batch, arguments)))
    console = Console(width=120)
    console.print(table)
    console.print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def _measure(label: str, space: Space, batch: tuple[Tensor, Tensor], arguments: argparse.Namespace) -> Measured:
    generator, net = random.Random(0), space.supernet(space.task(CLASSES, 3, SIZE)).to(arguments.device)
    found = Measured([], [])
    for _ in track(range(arguments.networks), label):
        arch, other = space.sample(generator), space.sample(generator)
        shared = Contestant(net, arguments.precision, arch, other)
        alone = Contestant(net.extract(arch).to(arguments.device), arguments.precision)
        for _ in range(2):
            shared.step(*batch), alone.step(*batch)
        pairs = [_pair(shared, alone, batch, generator) for _ in range(arguments.pairs)]
        found.shared.append([pair[0] for pair in pairs])
        found.alone.append([pair[1] for pair in pairs])
        if arguments.profile:
            _profile(label, shared, alone, batch)
    return found


def _pair(
    shared: Contestant, alone: Contestant, batch: tuple[Tensor, Tensor], generator: random.Random
) -> tuple[float, float]:
    if generator.random() < 0.5:
        return shared.step(*batch), alone.step(*batch)
    theirs = alone.step(*batch)
    return shared.step(*batch), theirs


def _cells(found: Measured) -> list[str]:
    centre, low, high = found.interval()
    slowest = max(statistics.median(each) for each in found.ratios())
    alone, shared = (
        statistics.median(seconds for each in side for seconds in each) for side in (found.alone, found.shared)
    )
    return [
        f"{len(found.shared)} x {len(found.shared[0])}",
        f"{1e3 * alone:.1f}",
        f"{1e3 * shared:.1f}",
        f"{centre:.3f} [{low:.3f}, {high:.3f}]",
        f"{slowest:.3f}",
    ]


def _profile(label: str, shared: Contestant, alone: Contestant, batch: tuple[Tensor, Tensor]) -> None:
    """Print the operators whose own time differs most between the two, over three steps."""
    totals: list[dict[str, float]] = []
    for contestant in (shared, alone):
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                contestant.step(*batch)
        totals.append({each.key: each.self_cpu_time_total / 3000 for each in profiler.key_averages()})
    ours, theirs = totals
    more = {key: ours.get(key, 0) - theirs.get(key, 0) for key in ours.keys() | theirs.keys()}
    table = Table(title=f"{label}: own time of operators, ms per step")
    for column in ("operator", "supernet", "alone", "difference"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for key in sorted(more, key=lambda key: -abs(more[key]))[:8]:
        table.add_row(key, f"{ours.get(key, 0):.2f}", f"{theirs.get(key, 0):.2f}", f"{more[key]:+.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
