"""Updates per second of `compress.training.fit.fit` beside a plain PyTorch loop of the same model, data and precision.

    python benchmarks/train_step.py                     # ResNet-20 on the CPU, about two minutes
    python benchmarks/train_step.py --device cuda --model builtin:cifar_resnet44 --precision bf16 --channels-last

Both train on random images of CIFAR's shape, cropped and mirrored, with AdamW, a cosine schedule and the logits of a
teacher of the same architecture. `fit` runs once; after each of its epochs the plain loop runs one, so that both meet
the same conditions; the first of each, in which kernels are chosen and memory is taken, does not count. Times are
processor times on the CPU, which other work on the machine moves far less, and wall clock on a GPU. The plain loop is
given what it can be given: all images normalised and padded on the device beforehand, every draw made there, and no
bookkeeping. The ratio is the median over rounds with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from compress.distill.finetune import FinetuneConfig
from compress.distill.losses.kd import KdConfig, kd_loss
from compress.training.fit import fit
from evaluators.datasets import Data, Preprocessing
from evaluators.datasets.loaders import ArrayLoader
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig, build_model

CLASSES, SIZE, REACH = 10, 32, 4
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)
LR, DECAY, KD = 1e-3, 0.05, KdConfig()


def images_and_labels(count: int) -> tuple[Tensor, Tensor]:
    """Return random images uint8 (N, 32, 32, 3) and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(0, CLASSES, (count,), generator=generator)


class PlainLoop:
    """What one would write by hand."""

    def __init__(self, model: nn.Module, teacher: nn.Module, arguments: argparse.Namespace) -> None:
        self.device, self.batch = torch.device(arguments.device), arguments.batch
        self.layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
        self.half = arguments.precision == "bf16"
        self.model, self.teacher = (
            each.to(self.device).to(memory_format=self.layout) for each in (model.train(), teacher.eval())
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=DECAY)
        updates = arguments.rounds * (arguments.images // self.batch)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, updates)
        images, labels = images_and_labels(arguments.images)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        padded = F.pad(images.permute(0, 3, 1, 2) / 255, (REACH,) * 4)
        self.images, self.labels = ((padded - mean) / std).to(self.device), labels.to(self.device)

    def epoch(self) -> float:
        """Train for an epoch and return the mean loss."""
        total = torch.zeros((), device=self.device)
        order = torch.randperm(len(self.labels), device=self.device).split(self.batch)
        for rows in order:
            images, labels = self._augmented(rows), self.labels[rows]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                logits = self.model(images)
                with torch.no_grad():
                    guidance = self.teacher(images)
            student = kd_loss(logits.float(), guidance.float(), KD.temperature)
            loss = KD.weight * student + (1 - KD.weight) * F.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        return float(total) / len(order)

    def _augmented(self, rows: Tensor) -> Tensor:
        where: dict[str, Any] = {"device": self.device}
        top, left = torch.randint(0, 2 * REACH + 1, (2, len(rows), 1), **where)
        pixels = torch.arange(SIZE, **where)
        down, along = (top + pixels).unsqueeze(2), (left + pixels).unsqueeze(1)
        images = self.images[rows.view(-1, 1, 1), :, down, along].permute(0, 3, 1, 2)
        mirrored = torch.rand(len(rows), 1, 1, 1, **where) < 0.5
        return torch.where(mirrored, images.flip(3), images).contiguous(memory_format=self.layout)


class Clock:
    """Seconds since it was last read, when all work of the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.last = device, 0.0

    def read(self) -> float:
        """Return them and start anew."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.process_time() if self.device.type == "cpu" else time.perf_counter()
        passed, self.last = now - self.last, now
        return passed


def measured(arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the seconds of each round: of `fit`, and of the plain loop."""
    source, _, name = arguments.model.partition(":")
    model = build_model(ModelConfig(source=source, name=name), DEFAULT.bind(CLASSES, (3, SIZE, SIZE))).module
    teacher = copy.deepcopy(model)
    plain = PlainLoop(copy.deepcopy(model), copy.deepcopy(model), arguments)
    images, labels = images_and_labels(arguments.images)
    preprocessing = Preprocessing((3, SIZE, SIZE), MEAN, STD)
    train = ArrayLoader(
        images, labels, preprocessing=preprocessing, batch_size=arguments.batch, augment="crop_flip", seed=0
    )
    data = Data(
        DEFAULT.bind(CLASSES, preprocessing.input_size),
        preprocessing,
        train,
        None,
        [str(label) for label in range(CLASSES)],
    )
    config = FinetuneConfig(
        epochs=arguments.rounds + 1,
        lr=LR,
        weight_decay=DECAY,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        evaluate_every=0,
        distill=KD,
    )
    clock, ours, theirs = Clock(torch.device(arguments.device)), [], []

    def in_turns(event: dict[str, Any]) -> None:
        ours.append(clock.read())
        plain.epoch()
        theirs.append(clock.read())

    clock.read()
    fit(model, data, config, device=arguments.device, teacher=teacher, log=in_turns)
    return ours[1:], theirs[1:]


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the ends of the median's 95 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main() -> None:
    """Measure and print one table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--model", default="builtin:cifar_resnet20", help="SOURCE:NAME")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--batch", type=int, default=128, help="images in an update")
    parser.add_argument("--images", type=int, help="images in a round; 20,000 on a GPU, 5 batches on the CPU")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that does not")
    arguments = parser.parse_args()
    if arguments.images is None:
        arguments.images = 5 * arguments.batch if arguments.device == "cpu" else 20_000
    arguments.images -= arguments.images % arguments.batch
    ours, theirs = measured(arguments)
    updates = arguments.images // arguments.batch
    table = Table(title=f"{arguments.model}, batch {arguments.batch}, {arguments.precision}, {arguments.device}")
    for column in ("loop", "updates/s", "ms/update"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for name, seconds in (("compress", ours), ("plain", theirs)):
        middle = statistics.median(seconds) / updates
        table.add_row(name, f"{1 / middle:.2f}", f"{1e3 * middle:.2f}")
    Console(width=100).print(table)
    ratios = [plain / own for own, plain in zip(ours, theirs, strict=True)]
    low, high = interval(ratios)
    print(f"updates per second, compress / plain: {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
