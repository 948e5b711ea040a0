"""What it is worth to write shortcuts that pad channels as convolutions, by the number of channels.

    python benchmarks/padded_shortcuts.py [--channels 16 32 64 128 256] [--size 32]

A stage of a residual network: a block whose shortcut takes every second pixel and pads from C to 2 C channels, and two
blocks behind it. Random weights, batch 1, one thread. Prints how many times as fast the file is with convolutions,
timed in turns with the file that slices and pads.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from compress.export import shortcuts
from compress.export.quick import write_to_time
from evaluators.latency.measure import LatencyConfig, compare
from spaces.cifar_resnet import BasicBlock


def main() -> None:
    """Write both files for each number of channels, and time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    arguments = parser.parse_args()
    for channels in arguments.channels:
        stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
        wide = [BasicBlock(2 * channels, 2 * channels, 1, "A") for _ in range(2)]
        model = nn.Sequential(stem, BasicBlock(channels, 2 * channels, 2, "A"), *wide).eval()
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for name, most in (("padded", 0), ("convolved", channels)):
                files.append(Path(folder) / f"{name}.onnx")
                with mock.patch.object(shortcuts, "MOST_CHANNELS", most):
                    write_to_time(model, torch.randn(1, 3, arguments.size, arguments.size), files[-1], 1)
            found = compare(files[0], files[1], LatencyConfig(max_seconds=20))
        low, high = found["ci95"]
        print(f"{channels:4} channels: {found['median']:.3f}x as fast [{low:.3f}, {high:.3f}] ({found['clock']})")


if __name__ == "__main__":
    main()
