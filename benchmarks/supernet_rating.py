"""What it costs to judge architectures by a supernet: rating them beside plain forward passes of the same networks.

    python benchmarks/supernet_rating.py                 # three spaces
    python benchmarks/supernet_rating.py pooling --architectures 8

Both see the same held-out digits in the same batches, in turns in one process on one thread; times are CPU times. The
plain side runs networks that are cut out and ready, so the ratio (plain / rating, above 0.8 wanted) holds everything
that rating adds: activating, the task's metrics, bookkeeping. Estimating batch norms anew is counted by itself.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from compress.core.progress import set_quiet, track
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import with_holdout
from evaluators.tasks import DEFAULT
from search.supernets.rating import AccuracyRater
from spaces.registry import create, open_preset

SPACES = ("mobilenetv3 tiny", "pooling", "nas_bench_macro")


def measure(name: str, architectures: int, rounds: int) -> tuple[float, float, float]:
    """Return plain / rating, architectures rated per second, and seconds that 8 batches of calibration add."""
    whole = DigitsConfig(name="digits", image_size=32, batch_size=64).load(DEFAULT, seed=0)
    assert whole is not None
    data = with_holdout(whole, 0.3, 0)
    assert data.test is not None
    space = open_preset("mobilenetv3", "tiny")[0] if name == "mobilenetv3 tiny" else create(name, {})
    space.default_task = data.task
    supernet, generator = space.supernet(data.task), random.Random(0)
    archs = [space.sample(generator) for _ in range(architectures)]
    rater, calibrated = AccuracyRater(supernet, "cpu", 0), AccuracyRater(supernet, "cpu", 8)
    for each in (rater, calibrated):
        each.rate(archs[0], data)
    batches = [batch.inputs for batch in data.test.batches()]
    ratios, seconds, added = [], [], []
    for _ in track(range(rounds), name, total=rounds):
        for arch in archs:
            model = supernet.extract(arch).eval()
            started = time.process_time()
            rater.rate(arch, data)
            rated = time.process_time()
            with torch.no_grad():
                for images in batches:
                    model(images)
            plain = time.process_time()
            calibrated.rate(arch, data)
            ended = time.process_time()
            ratios.append((plain - rated) / (rated - started))
            seconds.append(rated - started)
            added.append(ended - plain - (rated - started))
    return statistics.median(ratios), 1 / statistics.median(seconds), statistics.median(added)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", help=f"of {', '.join(SPACES)}")
    parser.add_argument("--architectures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    table = Table("space", "plain / rating", "rated per second", "calibration adds, s")
    for name in options.spaces or SPACES:
        ratio, rate, added = measure(name, options.architectures, options.rounds)
        table.add_row(name, f"{ratio:.2f}", f"{rate:.2f}", f"{added:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
