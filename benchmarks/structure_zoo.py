"""How many model families can be pruned at all: this toolkit beside torch-pruning, each model in a process of its own.

    python benchmarks/structure_zoo.py [MODEL ...] [--seconds 120] [--csv FILE]

Both are asked for about half of the MACs of a model with random weights. A model counts as pruned when the narrowed
module runs and at least a quarter of the MACs are gone; torch-pruning is used as its documentation shows (class-wise
defaults, the classifier ignored, channel ratio 0.3, which halves the MACs of a plain network).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time

FAMILIES = [
    "resnet18", "resnet50", "vgg11_bn", "densenet121", "inception_v4", "nasnetalarge", "mobilenetv2_100",
    "mobilenetv3_large_100", "efficientnet_b0", "regnety_004", "convnext_atto", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "pvt_v2_b0", "mixer_s32_224",
    "levit_128", "maxvit_tiny_rw_224", "coat_tiny", "edgenext_xx_small", "fastvit_t8", "poolformer_s12",
    "crossvit_tiny_240", "cait_xxs24_224", "xcit_nano_12_p8_224", "res2net50_26w_4s", "ghostnet_100", "hrnet_w18_small",
    "dla34",
]  # fmt: skip


def one(tool: str, name: str) -> dict[str, object]:
    """Prune one model with one tool; return the MACs that are left as a fraction, or the error."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    started = time.perf_counter()
    small = ours(model, x) if tool == "compress" else theirs(model, x)
    seconds = time.perf_counter() - started
    from evaluators.cost import count_macs

    with torch.no_grad():
        small(x)
    fresh = timm.create_model(name).eval()
    return {"kept": count_macs(small, x) / count_macs(fresh, x), "seconds": seconds}


def ours(model, x):  # type: ignore[no-untyped-def]
    """Half of the MACs with the defaults of `compress.plan`."""
    import compress

    return compress.apply(compress.plan(model, x, budget={"macs": 0.5}), model)


def theirs(model, x):  # type: ignore[no-untyped-def]
    """torch-pruning's group magnitude at a channel ratio of 0.3, attention heads told to it where timm names them."""
    import torch_pruning as tp
    from torch import nn

    heads = {m.qkv: m.num_heads for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)}
    classifier = model.get_classifier()
    ignored = list(classifier) if isinstance(classifier, (list, tuple)) else [classifier]
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.3,
        ignored_layers=ignored,
        num_heads=heads,
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    for module in model.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear) and module.qkv in pruner.num_heads:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
    return model


def run(tool: str, name: str, limit: float) -> dict[str, object]:
    """Run `one` in a fresh process, ended after `limit` seconds."""
    command = [sys.executable, __file__, "--one", tool, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no end within {limit:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines() or ["no output"]
        return {"error": last[-1][:90]}
    result: dict[str, object] = json.loads(lines[-1])
    return result


def verdict(result: dict[str, object]) -> str:
    """Return one cell of the table."""
    if "error" in result:
        return f"fails: {result['error']}"
    kept = float(result["kept"])  # type: ignore[arg-type]
    mark = "ok" if kept <= 0.75 else "hardly pruned"
    return f"{mark}: {kept:.2f} of MACs, {float(result['seconds']):.1f} s"  # type: ignore[arg-type]


def main() -> None:
    """Print one table, and the number of models that each tool prunes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=FAMILIES)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--csv")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.models)))
        return
    rows = []
    for name in arguments.models:
        rows.append([name, *(verdict(run(tool, name, arguments.seconds)) for tool in ("compress", "torch-pruning"))])
        print("  ".join(cell.ljust(width) for cell, width in zip(rows[-1], (32, 30, 0), strict=True)), flush=True)
    for place, tool in ((1, "compress"), (2, "torch-pruning")):
        print(f"{tool}: {sum(row[place].startswith('ok') for row in rows)} of {len(rows)}")
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:  # noqa: PTH123
            csv.writer(file).writerows([["model", "compress", "torch-pruning"], *rows])


if __name__ == "__main__":
    main()
