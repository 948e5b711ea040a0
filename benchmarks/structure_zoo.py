"""How many model families can be pruned at all: this toolkit beside torch-pruning, each model in a process of its own.

    python benchmarks/structure_zoo.py [MODEL ...] [--seconds 120] [--csv FILE] [--only compress]

Both are asked for about half of the MACs of a model with random weights. A model counts as pruned when the narrowed
module runs and at least a quarter of the MACs are gone; torch-pruning is used as its documentation shows (class-wise
defaults, the classifier ignored, channel ratio 0.3, which halves the MACs of a plain network).

Of this toolkit's plans it is told besides how far the narrowed model's output is from that of the dense model with
the removed units silenced (found here by other means than the plan's own check: removed positions set to zero, and
`layer_norm`, `group_norm`, `rms_norm` and standardised weights taken over the positions that stay), over how many of
the narrowed widths a norm runs, as the plan says, and what tracing and checking took. An output that is off although
it may be, for a norm that is not redone here, is marked with a star and is no proof of anything.

Times are CPU seconds of a process with one thread (`time.process_time`), since those of the clock tell more of what
else the machine does; trace and check are medians of three.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

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
    started = time.process_time()
    extra: dict[str, object] = {}
    if tool == "compress":
        import compress

        plan = compress.plan(model, x, budget={"macs": 0.5})
        small = compress.apply(plan, model)
    else:
        small = theirs(model, x)
    seconds = time.process_time() - started
    if tool == "compress":
        norms = sum(row.narrows_norm for row in plan.layers)
        extra = {"error_of_output": departure(model, small, plan, x), "norms": norms, **check_times(model, x)}
    from evaluators.cost import count_macs

    with torch.no_grad():
        small(x)
    fresh = timm.create_model(name).eval()
    return {"kept": count_macs(small, x) / count_macs(fresh, x), "seconds": seconds, **extra}


def lively(model):  # type: ignore[no-untyped-def]
    """Let norms, scales, gains and biases that start at one value vary, and those at zero be something.

    A branch that starts at zero, or at next to nothing, would hide mistakes.
    """
    import torch

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            learned = isinstance(value, torch.nn.Parameter) or name.endswith(("running_mean", "running_var"))
            if not learned or not value.numel() or not value.is_floating_point() or (value != value.flatten()[0]).any():
                continue
            if name.endswith(("bias", "beta", "running_mean")):
                value.normal_(0, 0.1)
            elif value.numel() > 1 or not value:
                value.uniform_(0.5, 1.5)
    return model


def departure(model, small, plan, x):  # type: ignore[no-untyped-def]
    """Return max|narrowed - silenced dense| / max|silenced dense| of the outputs, in float64."""
    import copy

    import torch

    dense, small, x = copy.deepcopy(model).double(), copy.deepcopy(small).double(), x.double()
    named = {**dict(dense.named_parameters()), **dict(dense.named_buffers())}
    stays, inputs = {}, {}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, indices in dims.items():
                gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
                gone[list(indices)] = False
                named[name].index_fill_(dim, gone.nonzero().flatten(), 0)
                stays[id(named[name])] = torch.tensor(indices)
                if dim == 1:
                    inputs[named[name].data_ptr()] = gone.numel(), torch.tensor(indices)
        for module in [*dense.modules(), *small.modules()]:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # the fused kernel takes its scale from the width of a head
        with norms_over(stays, inputs):
            expected = dense(x)
        return float((small(x) - expected).abs().max() / expected.abs().max())


def norms_over(stays, inputs):  # type: ignore[no-untyped-def]
    """Let norms run over what stays.

    `stays`: of layer, group and RMS norms by the id of the weight the positions that stay; `inputs`: of weights that
    are themselves normalised row by row, by their address, the number of inputs and those that stay.
    """
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            if func is F.batch_norm and kwargs.get("training") and args[0].data_ptr() in inputs:
                size, left = inputs[args[0].data_ptr()]
                rows = args[0].unflatten(-1, (size, -1))
                out = func(rows.index_select(2, left).flatten(2), *args[1:], **kwargs).unflatten(-1, (len(left), -1))
                return torch.zeros_like(rows).index_copy(2, left, out).flatten(2)
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
    from compress.graph.plan import make_plan

    traces, checks = [], []
    for _ in range(REPEATS):
        started = time.process_time()
        traced = build_graph(model, x)
        traces.append(time.process_time() - started)
    started = time.process_time()
    graph = checked(model, traced, x)
    trials = time.process_time() - started
    tied = {name for tie in graph.ties for name in tie}
    kept = {g.name: torch.arange(max(1, g.size // 2)) for g in graph.groups if g.name not in tied}
    plan = make_plan(model, graph, kept)
    for _ in range(REPEATS):
        started = time.process_time()
        exact = Exactness(model, x)
        fault = exact.fault(graph, kept, finished=plan)
        checks.append(time.process_time() - started)
    times = {"trace": statistics.median(traces), "trials": trials, "check": statistics.median(checks)}
    return {**times, "fault": fault and str(fault), "complete": exact.complete}


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
    """Run `one` in a process of its own, ended after `limit` seconds."""
    fresh = multiprocessing.get_context("forkserver")  # which imports torch and timm once for all of them
    fresh.set_forkserver_preload(["timm", "compress.prune.structure"])
    mine, its = fresh.Pipe(duplex=False)
    process = fresh.Process(target=report, args=(tool, name, its))
    process.start()
    its.close()
    try:
        return mine.recv() if mine.poll(limit) else {"error": f"no end within {limit:g} s"}
    except EOFError:
        return {"error": "the process died"}
    finally:
        process.kill()
        process.join()


def report(tool: str, name: str, sending: Connection) -> None:
    """Send what `one` gives, or the error."""
    try:
        sending.send(one(tool, name))
    except Exception as error:  # whatever a tool or a model raises is its result
        sending.send({"error": f"{type(error).__name__}: {error}"[:90]})


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
        return [""] * 5
    star = "*" if off(result) and result["norms"] else ""
    times = [f"{float(result[key]):.2f}" for key in ("trace", "trials", "check")]  # type: ignore[arg-type]
    return [f"{float(result['error_of_output']):.0e}{star}", str(result["norms"]), *times]  # type: ignore[arg-type]


def off(result: dict[str, object]) -> bool:
    """Return whether the narrowed model gives something else (or NaN)."""
    return not float(result["error_of_output"]) <= EXACT  # type: ignore[arg-type]


EXACT = 1e-6
REPEATS = 3
HEADER = ["model", "compress", "off by", "norms", "trace s", "trials s", "check s", "torch-pruning"]
WIDTHS = (32, 30, 8, 6, 7, 8, 7, 0)


def main() -> None:
    """Print one table, the number of models that each tool prunes, and how exact and how costly our plans are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=FAMILIES)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--csv")
    parser.add_argument("--only", choices=["compress", "torch-pruning"])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # CPU time is that of the work alone
    rows, ours = [HEADER], []
    for name in arguments.models:
        done = {tool: run(tool, name, arguments.seconds) for tool in ("compress", "torch-pruning")
                if arguments.only in (None, tool)}  # fmt: skip
        cells = {tool: verdict(done[tool]) if tool in done else "" for tool in ("compress", "torch-pruning")}
        extra = exactness(done["compress"]) if "compress" in done else [""] * 5
        rows.append([name, cells["compress"], *extra, cells["torch-pruning"]])
        ours += [done["compress"]] if "compress" in done and "error" not in done["compress"] else []
        print("  ".join(cell.ljust(width) for cell, width in zip(rows[-1], WIDTHS, strict=True)), flush=True)
        if arguments.csv:  # after every model, so that what was measured stays
            with Path(arguments.csv).open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    for place, tool in ((1, "compress"), (-1, "torch-pruning")):
        if arguments.only in (None, tool):
            print(f"{tool}: {sum(row[place].startswith('ok') for row in rows[1:])} of {len(rows) - 1}")
    if ours:
        wrong = sum(off(each) and not each["norms"] for each in ours)
        open_ = sum(off(each) and bool(each["norms"]) for each in ours)
        ratio = statistics.median(float(each["check"]) / float(each["trace"]) for each in ours)  # type: ignore[arg-type]
        print(f"outputs off by more than {EXACT:g}: {wrong} of {len(ours)}; {open_} more for norms not redone here")
        complete = sum(bool(each["complete"]) for each in ours)
        print(f"check / trace, median: {ratio:.2f}; every operation compared: {complete} of {len(ours)}")


if __name__ == "__main__":
    main()
