"""One model of the zoo, from its name to a measured ONNX file, in processes of their own with limits."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HALF = 0.5
ALMOST = 0.52  # of the MACs may be left, where half is asked for
EXACT = 1e-6  # in float64, of the largest output
ALIKE = 1e-3  # ONNX Runtime beside PyTorch, in float32, of the largest output
LARGEST_SIDE = 288  # above, a model is tried at the smallest of the sides below that it takes
SIDES = (112, 128, 224, 256)


class Faulty(Exception):
    """The narrowed model is not what it should be, and nothing has said so."""


@dataclass(frozen=True)
class Case:
    """A model as it is asked for; None: as the model has it."""

    source: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    classes: int | None = None
    channels: int | None = None


def tried(case: Case, folder: Path, seconds: float, gigabytes: float) -> Row:
    """Prune `case` in one process; open it again, export and time it in another; return the row of the table.

    `seconds` of CPU time and `gigabytes` of data are the limits of each of the two.
    """
    started = time.monotonic()
    row = isolated(pruned, (case, folder), seconds, gigabytes)
    if "outcome" not in row:
        row |= isolated(exported, (case, folder), seconds, gigabytes)
    return {"outcome": "pass", **row, "seconds": time.monotonic() - started}


def pruned(case: Case, folder: Path) -> Row:
    """Prune to half of the MACs, hold the result against the silenced dense model, and write the bundle."""
    import torch
    from safetensors.torch import save_file
    from silenced import departure

    from compress.export.exporters import ExportConfig
    from compress.graph.build import build_graph
    from compress.prune.kinds import Surroundings
    from compress.prune.kinds.structure import Structure
    from evaluators.cost import count_macs, count_params
    from evaluators.latency.measure import LatencyConfig

    bundle = opened(case)
    model, x = bundle.model, bundle.example_inputs()
    macs = count_macs(model, x)
    row: Row = {"input": "x".join(map(str, x.shape[1:])), "params": count_params(model)[0]}
    started = time.process_time()
    traced = build_graph(model, x)
    row["trace_s"] = time.process_time() - started
    started = time.process_time()
    graph = bundle.known.graph(model, x)
    row["trials_s"] = time.process_time() - started - row["trace_s"]
    row["check_s"] = check_time(model, traced, graph, x)
    started = time.process_time()
    config = Structure(kind="structure", budget={"macs": HALF})
    small, _ = config.prune(bundle, Surroundings(None, "cpu", 0, LatencyConfig(), ExportConfig()))
    row["plan_s"] = time.process_time() - started
    plan = small.transforms[-1].plan
    row["macs_kept"] = count_macs(small.model, x) / macs
    row["norms"] = sum(layer.narrows_norm for layer in plan.layers)
    row["off_by"] = departure(model, small.model, plan, x)
    if not row["off_by"] <= EXACT:
        raise Faulty(f"off by {row['off_by']:.0e} of the largest output", row)
    if row["macs_kept"] > ALMOST:
        raise Faulty(f"{row['macs_kept']:.2f} of the MACs are left where {HALF} was asked for", row)
    small.save(folder / "bundle")
    with torch.no_grad():
        given = {f"y{i}": y.contiguous() for i, y in enumerate(outputs(small.model, x))}
    save_file(given, folder / "outputs.safetensors")
    return row


def exported(case: Case, folder: Path) -> Row:
    """Open the bundle, compare it bit for bit, export it and the dense model, compare and time the files."""
    import numpy
    import onnxruntime
    import torch
    from safetensors.torch import load_file

    from compress.bundle import Bundle
    from compress.core.errors import CompressError
    from compress.export.quick import export_quickly
    from evaluators.latency.measure import LatencyConfig, compare

    small = Bundle.load(folder / "bundle")
    x = small.example_inputs(2)
    written = load_file(folder / "outputs.safetensors")
    with torch.no_grad():
        again = outputs(small.model, small.example_inputs())
        expected = outputs(small.model, x)
    if len(again) != len(written) or not all(torch.equal(written[f"y{i}"], y) for i, y in enumerate(again)):
        raise Faulty("the reloaded model gives something else")
    dense = opened(case)
    whole = failure = None
    try:
        made = export_quickly(small.model, x, folder / "small.onnx", small.task)
    except CompressError as error:
        failure = error
    try:
        whole = export_quickly(dense.model, x, folder / "dense.onnx", dense.task)
    except CompressError as error:
        if failure is not None:
            raise Refused(f"the whole model cannot be exported either: {error}") from failure
    if failure is not None:
        raise failure
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    parity = max(float(numpy.abs(a - b.numpy()).max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    row: Row = {"exporter": made.exporter, "parity": parity}
    if not parity <= ALIKE:
        raise Faulty(f"the ONNX file is off by {parity:.0e} of the largest output", row)
    if whole is not None:
        quick = LatencyConfig(runs=10, seconds=0.2, max_seconds=4, precision=0.05)
        ratio = compare(whole.path, made.path, quick)
        row |= {"latency_ratio": ratio["median"], "clock": ratio["clock"]}
    return row


class Refused(Exception):
    """What cannot be done with the whole model either, in a sentence."""


def outputs(model, x):  # type: ignore[no-untyped-def]
    """Return the output tensors for `x`."""
    from compress.core.tensors import tensors_in

    return [each.detach() for each in tensors_in(model(x)) if each.is_floating_point()]


def opened(case: Case):  # type: ignore[no-untyped-def]
    """Return the bundle of the whole model with random weights, at half of its input size where it runs at that.

    Models for images above LARGEST_SIDE are tried at the sides of SIDES instead.
    """
    import torch
    from silenced import lively

    from compress.bundle import Bundle
    from compress.core.errors import InputError
    from evaluators.datasets import Preprocessing
    from spaces.zoo import ModelConfig, build_model

    config = ModelConfig(source=case.source, name=case.name, kwargs=case.kwargs)
    task = config.from_source.task_of(config)
    channels = case.channels or 3
    own = 224
    if case.source == "timm":
        import timm

        published = timm.models.get_pretrained_cfg(case.name)
        own = published.input_size[1] if published else own
    for side in [*((own // 2,) if own <= LARGEST_SIDE else SIDES), own]:
        try:
            built = build_model(config, task.of_model(case.classes, (channels, side, side)))
            break
        except InputError:
            if side == own:
                raise
    torch.manual_seed(0)
    preprocessing = Preprocessing.of_model(built.pretrained_cfg, built.input_size)
    return Bundle(lively(built.module), built.config, built.task, preprocessing)


def check_time(model, traced, graph, x) -> float:  # type: ignore[no-untyped-def]
    """Return what checking a plan takes that keeps half of every group that may be narrowed by itself."""
    import torch

    from compress.graph.exactness import Exactness
    from compress.graph.plan import make_plan

    tied = {name for tie in graph.ties for name in tie}
    kept = {g.name: torch.arange(max(1, g.size // 2)) for g in graph.groups if g.name not in tied}
    plan = make_plan(model, graph, kept)
    started = time.process_time()
    Exactness(model, x).fault(graph, kept, finished=plan)
    return time.process_time() - started


def peer(case: Case) -> Row:
    """Return the share of MACs that torch-pruning leaves.

    Its group magnitude at a channel ratio of 0.3, which halves the MACs of a plain network, with class-wise defaults
    and the classifier ignored, as its documentation shows; heads are told to it where timm names them.
    """
    import torch_pruning as tp
    from torch import nn

    from evaluators.cost import count_macs

    bundle = opened(case)
    model, x = bundle.model, bundle.example_inputs()
    whole = count_macs(model, x)
    fused = [module for module in model.modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]
    heads = {module.qkv: module.num_heads for module in fused}
    classifier = model.get_classifier()
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.3,
        ignored_layers=list(classifier) if isinstance(classifier, (list, tuple)) else [classifier],
        num_heads=heads,
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    for module in fused:
        if module.qkv in pruner.num_heads:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
    return {"macs_kept": count_macs(model, x) / whole}  # counting runs it


def isolated(function: Callable[..., Row], args: tuple[Any, ...], seconds: float, gigabytes: float) -> Row:
    """Return what `function` gives in a process of its own, or the row of what became of it."""
    fresh = multiprocessing.get_context("forkserver")  # which imports torch and timm once for all of them
    fresh.set_forkserver_preload(PRELOADED)
    mine, its = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_reporting, args=(function, args, seconds, gigabytes, its))
    process.start()
    its.close()
    try:
        if mine.poll(IDLE * seconds):
            return mine.recv()
        return {"outcome": "timeout", "detail": f"{function.__name__}: no end within {IDLE * seconds:g} s"}
    except EOFError:
        process.join()
        if process.exitcode == -24:
            return {"outcome": "timeout", "detail": f"{function.__name__}: no end within {seconds:g} s of CPU time"}
        return {"outcome": "failed", "detail": f"{function.__name__}: the process died ({process.exitcode})"}
    finally:
        process.kill()
        process.join()


IDLE = 6  # times as long may a process take by the clock, on a busy machine
PRELOADED = [
    "timm",
    "torchvision",
    "onnxruntime",
    "compress.prune.kinds.structure",
    "compress.export.quick",
    "spaces.zoo",
]


def _reporting(
    function: Callable[..., Row], args: tuple[Any, ...], seconds: float, gigabytes: float, sending: Connection
) -> None:
    """Send what `function` gives, or the row that its error makes."""
    from compress.core.errors import InputError, in_one_line

    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress
            sending.send(function(*args))
    except Faulty as error:
        sentence, *known = error.args
        sending.send({**(known[0] if known else {}), "outcome": "wrong", "detail": sentence})
    except (InputError, Refused) as error:
        sending.send({"outcome": "refused", "detail": f"{function.__name__}: {in_one_line(error)}"})
    except BaseException as error:  # whatever a model, an exporter or the runtime raises is the result
        sending.send({"outcome": "failed", "detail": f"{function.__name__}: {in_one_line(error)}"[:400]})
