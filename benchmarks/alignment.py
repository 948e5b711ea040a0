"""What aligned widths are worth: one model, one MAC budget, pruned to several width multiples, timed against the dense.

    python benchmarks/alignment.py [mobilenetv2_100] [--macs 0.7] [--align 16 8 1]

Random weights (time does not depend on them), 224 x 224, batch 1, one thread. `auto` is this machine's multiple.
Prints one table; each ratio is measured by interleaving the two files.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import timm
import torch

import compress
from compress.export.exporters import ExportConfig, export
from evaluators.latency.measure import LatencyConfig, compare
from evaluators.latency.targets.local import LocalTarget
from evaluators.latency.width_multiple import width_multiple


def main() -> None:
    """Export the dense model once and every pruned one, and time them in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="mobilenetv2_100")
    parser.add_argument("--macs", type=float, default=0.7)
    parser.add_argument("--align", type=int, nargs="*")
    arguments = parser.parse_args()
    auto = width_multiple(LocalTarget())
    print(f"this machine: multiples of {auto.value} ({auto.source})")
    torch.manual_seed(0)
    model = timm.create_model(arguments.model).eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    quick = ExportConfig(exporter="torchscript")
    with tempfile.TemporaryDirectory() as folder:
        dense, small = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        export(model, x, dense, quick)
        for align in arguments.align or sorted({auto.value, 8, 1}, reverse=True):
            plan = compress.plan(model, x[:1], budget={"macs": arguments.macs}, align=align)
            export(compress.apply(plan, model).eval(), x, small, quick)
            result = compare(dense, small, LatencyConfig(max_seconds=30))
            kept, (low, high) = plan.macs[1] / plan.macs[0], result["ci95"]
            print(
                f"{arguments.model}  align {align:2}  MACs {kept:.3f}  {result['median']:.2f}x as fast "
                f"[{low:.2f}, {high:.2f}] ({result['clock']})  efficiency {result['median'] * kept:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
