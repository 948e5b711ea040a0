"""Seconds of an epoch of distillation with a live teacher and with its kept outputs, and how far the losses are apart.

    python benchmarks/teacher_cache.py                                 # digits: a ResNet-56 teaches a ResNet-8
    python benchmarks/teacher_cache.py --teacher builtin:cifar_resnet110 --student builtin:cifar_resnet20 --images 512

Both train the same student on the same batches, an epoch of one after an epoch of the other; the first does not count.
Times are processor times on the CPU, wall clock on a GPU. What writing the cache costs stands beside it: it pays once
a teacher is asked by more than one training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

from compress.distill.cache_writer import cache_teacher
from compress.distill.finetune import DistillStageConfig
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig, build_model


def main() -> None:
    """Write the cache, train by both, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="builtin:cifar_resnet56", help="SOURCE:NAME, with random weights")
    parser.add_argument("--student", default="builtin:cifar_resnet20")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(given, folder)


def compare(given: argparse.Namespace, folder: str) -> None:
    """Print what an epoch takes, and the largest difference of an update's losses."""
    clock = time.process_time if given.device == "cpu" else time.perf_counter
    digits = DigitsConfig(
        name="digits", image_size=given.size, limit_train=given.images, limit_test=10, batch_size=128, augment="shift"
    )
    data = digits.load(DEFAULT)
    source, name = given.teacher.split(":")
    section = {
        "loss": {"loss": "kd", "weight": 1.0},
        "teachers": {"big": {"model": {"source": source, "name": name}, "untrained": True, "cache": folder}},
        "epochs": given.rounds + 1,
    }
    config = DistillStageConfig.model_validate(section)
    kept = cache_teacher("big", config.teachers["big"], StepContext(config, data), 0, given.device)
    section["teachers"]["big"]["cache"] = None  # type: ignore[index]
    settings = {"live": DistillStageConfig.model_validate(section), "cached": config}
    assert data.train is not None
    source, name = given.student.split(":")
    updaters = {}
    for kind, each in settings.items():
        student = build_model(ModelConfig(source=source, name=name), data.task).module
        step = each.make_step(StepContext(each, data), 0)
        updaters[kind] = Updater(student, step, each, device=given.device, seed=0, batches=len(data.train))
    seconds: dict[str, list[float]] = {kind: [] for kind in updaters}
    apart, largest = 0.0, 0.0
    for epoch in range(config.epochs):
        losses = {}
        for kind, updater in updaters.items():
            updater.train()
            started = clock()
            first = epoch * len(data.train)
            losses[kind] = [updater.update(batch, n).item() for n, batch in enumerate(data.train.epoch(epoch), first)]
            seconds[kind].append(clock() - started)
        largest = max(largest, *losses["live"])
        apart = max(apart, *(abs(one - other) for one, other in zip(*losses.values(), strict=True)))
    live, cached = (statistics.median(each[1:]) for each in seconds.values())
    print(f"{given.teacher} teaches {given.student}, {given.images} images of {given.size} pixels, {given.device}")
    print(f"seconds of an epoch: live teacher {live:.2f}, cached {cached:.2f}: {live / cached:.2f} times as fast")
    print(
        f"writing the cache: {kept.seconds / config.epochs:.2f} s of wall clock an epoch, "
        f"{kept.size / config.epochs:,.0f} bytes"
    )
    print(f"losses of an update, up to {largest:.3g}, apart by at most {apart:.1e}")


if __name__ == "__main__":
    main()
