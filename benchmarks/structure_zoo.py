"""How many model families can be pruned at all: this toolkit beside torch-pruning, each model in a process of its own.

    python benchmarks/structure_zoo.py [MODEL ...] [--seconds 120] [--csv FILE] [--only compress]

Both are asked for about half of the MACs of a model with random weights. A model counts as pruned when the narrowed
module runs and at least a quarter of the MACs are gone; torch-pruning is used as its documentation shows (class-wise
defaults, the classifier ignored, channel ratio 0.3, which halves the MACs of a plain network).

Of this toolkit's plans it is told besides how far the narrowed model's output is from that of the dense model with
the removed units silenced (found here by other means than the plan's own check: removed positions set to zero, and
`layer_norm`, `group_norm` and `rms_norm` taken over the positions that stay), and what tracing and checking took.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
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
    "nextvit_small", "hiera_tiny_224", "resnetblur18", "densenetblur121d", "tresnet_m", "inception_v3",
    "inception_resnet_v2", "xception41", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050",
    "repvgg_a0", "repvit_m0_9", "rexnet_100", "mnasnet_050", "fbnetc_100", "spnasnet_100", "tinynet_e", "lcnet_050",
    "hardcorenas_a", "efficientvit_b0", "efficientformer_l1", "efficientformerv2_s0", "seresnext26d_32x4d",
    "resnext50_32x4d", "skresnet18", "ecaresnet26t", "gernet_s", "regnetx_002", "vovnet39a", "ese_vovnet19b_dw",
    "cspresnet50", "darknet53", "dpn48b", "selecsls42b", "visformer_tiny", "twins_pcpvt_small", "convmixer_768_32",
    "gmlp_s16_224", "resmlp_12_224", "convit_tiny", "tnt_s_patch16_224", "pit_ti_224", "beit_base_patch16_224",
    "nf_regnet_b0", "resnetv2_50", "focalnet_tiny_srf",
]  # fmt: skip


def one(tool: str, name: str) -> dict[str, object]:
    """Prune one model with one tool; return the MACs that are left as a fraction, or the error."""
    import timm
    import torch

    torch.manual_seed(0)
    model = lively(timm.create_model(name).eval())
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    started = time.perf_counter()
    extra: dict[str, object] = {}
    if tool == "compress":
        import compress

        plan = compress.plan(model, x, budget={"macs": 0.5})
        small = compress.apply(plan, model)
    else:
        small = theirs(model, x)
    seconds = time.perf_counter() - started
    if tool == "compress":
        extra = {"error_of_output": departure(model, small, plan, x), **check_times(model, x)}
    from evaluators.cost import count_macs

    with torch.no_grad():
        small(x)
    fresh = timm.create_model(name).eval()
    return {"kept": count_macs(small, x) / count_macs(fresh, x), "seconds": seconds, **extra}


def lively(model):  # type: ignore[no-untyped-def]
    """Let norms, scales and biases that start at one value vary: a branch that starts at zero would hide mistakes."""
    import torch

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and value.numel() > 1 and (value == value.flatten()[0]).all():
                if name.endswith(("weight", "running_var", "gamma")):
                    value.uniform_(0.5, 1.5)
                elif isinstance(value, torch.nn.Parameter) or name.endswith("running_mean"):
                    value.normal_(0, 0.1)
    return model


def departure(model, small, plan, x):  # type: ignore[no-untyped-def]
    """Return max|narrowed - silenced dense| / max|silenced dense| of the outputs, in float64."""
    import copy

    import torch

    dense, small, x = copy.deepcopy(model).double(), copy.deepcopy(small).double(), x.double()
    named = {**dict(dense.named_parameters()), **dict(dense.named_buffers())}
    stays = {}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, indices in dims.items():
                gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
                gone[list(indices)] = False
                named[name].index_fill_(dim, gone.nonzero().flatten(), 0)
                stays[id(named[name])] = torch.tensor(indices)
        for module in [*dense.modules(), *small.modules()]:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # the fused kernel takes its scale from the width of a head
        with norms_over(stays):
            expected = dense(x)
        return float((small(x) - expected).abs().max() / expected.abs().max())


def norms_over(stays):  # type: ignore[no-untyped-def]
    """Let norms whose weights were narrowed run over the channels in `stays` (id of the weight -> positions)."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            if func not in (F.layer_norm, F.rms_norm, F.group_norm) or id(weight) not in stays:
                return func(*args, **kwargs)
            x, place = args[0], 1 if func is F.group_norm else -1
            left = stays[id(weight)]
            bias = kwargs.get("bias", args[3] if func is not F.rms_norm and len(args) > 3 else None)
            eps = kwargs.get("eps", args[-1] if isinstance(args[-1], float) else None)
            eps = {"eps": eps} if eps is not None else {}
            taken = x.index_select(place, left)
            shape = args[1] if func is F.group_norm else (len(left),)
            if func is F.rms_norm:
                out = func(taken, shape, weight[left], **eps)
            else:
                out = func(taken, shape, weight[left], None if bias is None else bias[left], **eps)
            return torch.zeros_like(x).index_copy(place, left, out)

    return Mode()


def check_times(model, x):  # type: ignore[no-untyped-def]
    """Return what tracing takes, and checking a plan that keeps half of every group that may be narrowed by itself."""
    import torch

    from compress.graph.build import build_graph
    from compress.graph.check import checked
    from compress.graph.exactness import Exactness

    started = time.perf_counter()
    graph = build_graph(model, x)
    traced = time.perf_counter()
    graph = checked(model, graph, x)
    tried = time.perf_counter()
    tied = {name for tie in graph.ties for name in tie}
    kept = {g.name: torch.arange(max(1, g.size // 2)) for g in graph.groups if g.name not in tied}
    before = time.perf_counter()
    fault = Exactness(model, x).fault(graph, kept)
    after = time.perf_counter()
    return {"trace": traced - started, "trials": tried - traced, "check": after - before, "fault": fault and str(fault)}


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


def exactness(result: dict[str, object]) -> list[str]:
    """Return the cells on the plan's exactness and its times."""
    if "error" in result:
        return ["", "", "", ""]
    return [f"{float(result[key]):.{digits}}" for key, digits in TIMES]  # type: ignore[arg-type]


TIMES = (("error_of_output", "1e"), ("trace", "2f"), ("trials", "2f"), ("check", "2f"))
EXACT = 1e-6
HEADER = ["model", "compress", "off by", "trace s", "trials s", "check s", "torch-pruning"]


def main() -> None:
    """Print one table, the number of models that each tool prunes, and how exact and how costly our plans are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=FAMILIES)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--csv")
    parser.add_argument("--only", choices=["compress", "torch-pruning"])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.models)))
        return
    rows, ours = [], []
    for name in arguments.models:
        done = {tool: run(tool, name, arguments.seconds) for tool in ("compress", "torch-pruning")
                if arguments.only in (None, tool)}  # fmt: skip
        cells = {tool: verdict(done[tool]) if tool in done else "" for tool in ("compress", "torch-pruning")}
        extra = exactness(done["compress"]) if "compress" in done else [""] * 4
        rows.append([name, cells["compress"], *extra, cells["torch-pruning"]])
        ours += [done["compress"]] if "compress" in done and "error" not in done["compress"] else []
        widths = (32, 30, 8, 7, 8, 7, 0)
        print("  ".join(cell.ljust(width) for cell, width in zip(rows[-1], widths, strict=True)), flush=True)
    for place, tool in ((1, "compress"), (6, "torch-pruning")):
        if arguments.only in (None, tool):
            print(f"{tool}: {sum(row[place].startswith('ok') for row in rows)} of {len(rows)}")
    if ours:
        wrong = sum(not float(each["error_of_output"]) <= EXACT for each in ours)  # type: ignore[arg-type]
        ratio = statistics.median(float(each["check"]) / float(each["trace"]) for each in ours)  # type: ignore[arg-type]
        print(f"outputs off by more than {EXACT:g}: {wrong} of {len(ours)}; check / trace, median: {ratio:.2f}")
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:  # noqa: PTH123
            csv.writer(file).writerows([HEADER, *rows])


if __name__ == "__main__":
    main()
