"""`quantize` beside ONNX Runtime's own defaults: accuracy and speed of CIFAR-10 networks as 8-bit integers.

    python benchmarks/vs_onnxruntime_int8.py cifar10.npz weights/ [--networks resnet20 vit] [--csv FILE]
        [--limit-test 2000]

`weights/` as for vs_peers.py. ONNX Runtime's defaults are `quantize_static` (QDQ, signed activations and weights, one
scale for a tensor, MinMax) and `quantize_dynamic` with nothing set, after its own `quant_pre_process`; they calibrate
on the same images as the section `quantize`, at its defaults, whose choice is the third row. Files of a network are
timed in turns with the float one. Prints a table.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from vs_peers_networks import NETWORKS

from compress.core.text_table import text_table
from compress.export.quick import export_quickly
from compress.quantize.choose import Choice
from compress.quantize.config import QuantizeConfig
from compress.quantize.float_file import FloatFile
from compress.quantize.images import images_of
from compress.quantize.judge import judge
from evaluators.datasets import Loader
from evaluators.latency.measure import LatencyConfig, interleave
from evaluators.latency.processor import processor

COLUMNS = ("network", "file", "top1", "latency_ratio", "low", "high", "clock", "kilobytes")
LATENCY = LatencyConfig(seconds=0.5, max_seconds=15, precision=0.03)
LOST = 0.5  # points of accuracy that `quantize` may lose, its own default for accuracies


class Images(CalibrationDataReader):
    """Calibration images one by one, as the defaults' documentation does."""

    def __init__(self, name: str, images: Loader) -> None:
        self.left = ({name: image[None].numpy()} for batch in images.batches() for image in batch.inputs)

    def get_next(self) -> Any:
        """Return the next image, then None."""
        return next(self.left, None)


def files(network: str, given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a file is and where it lies, the float one first."""
    opened = NETWORKS[network].opened(given.images, given.weights, 0, given.limit_test)
    bundle, data = opened.bundle, opened.data
    assert data is not None
    exported = export_quickly(bundle.model, bundle.example_inputs(2), folder / "float.onnx", bundle.task).path
    yield "float", exported
    weights = {name: value.detach().numpy() for name, value in bundle.model.named_parameters()}
    source = FloatFile.prepare(exported, folder, weights)
    config = QuantizeConfig(max_drop=LOST)
    images = images_of(data, config, 0)
    static, dynamic = folder / "static.onnx", folder / "dynamic.onnx"
    quantize_static(str(source.prepared), str(static), Images(source.entries[0].name, images.calibration))
    yield "onnxruntime static, defaults", static
    quantize_dynamic(str(source.prepared), str(dynamic))
    yield "onnxruntime dynamic, defaults", dynamic
    choice = Choice(config, source, images, data.task, processor(LATENCY.target), LATENCY, LOST, folder)
    kept, _ = choice.run()
    yield f"compress quantize: {'float' if kept is None else kept.way.name}", exported if kept is None else kept.file


def rows_of(network: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each file of a network."""
    opened = NETWORKS[network].opened(given.images, given.weights, 0, given.limit_test)
    data = opened.data
    assert data is not None and data.test is not None
    with tempfile.TemporaryDirectory() as folder:
        found = dict(files(network, given, Path(folder)))
        ratios = interleave(list(found.values()), LATENCY).ratios
        alone = {"median": 1.0, "ci95": [1.0, 1.0], "clock": None}
        for (name, file), ratio in zip(found.items(), [alone, *ratios], strict=True):
            low, high = ratio["ci95"]
            yield {
                "network": network,
                "file": name,
                "top1": round(judge(file, data.test, data.task).metrics["top1"] or 0, 2),
                "latency_ratio": round(ratio["median"], 2),
                "low": round(low, 2),
                "high": round(high, 2),
                "clock": ratio["clock"],
                "kilobytes": round(file.stat().st_size / 1000),
            }


def main() -> None:
    """Print a table of all networks, and write it as csv where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for network in given.networks for row in rows_of(network, given)]
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(
        text_table(COLUMNS, [["-" if row[key] is None else str(row[key]) for key in COLUMNS] for row in rows], left=2)
    )


if __name__ == "__main__":
    main()
