"""How many architectures can be pruned and measured at all: one small member of every family of timm and torchvision.

    python benchmarks/zoo.py                       # all families that benchmarks/zoo.csv does not have yet
    python benchmarks/zoo.py swin_tiny_patch4_window7_224 vgg11     # these, anew
    python benchmarks/zoo.py --again failed        # all with this outcome, anew
    python benchmarks/zoo.py --classes 10 --channels 1 --csv zoo_grey.csv
    python benchmarks/zoo.py --choose              # write benchmarks/zoo_families.csv anew
    python benchmarks/zoo.py --peer                # torch-pruning on the models of the table, with its defaults

Each model gets random weights, is structure-pruned to half of its MACs, held against the dense model without the
removed units in float64, saved, opened again in another process, exported to ONNX, compared with ONNX Runtime, and
timed beside the dense model. Every one has processes of its own, with a limit of CPU time and of memory. What a row
says:

    pass       all of that was right
    refused    the toolkit says in a sentence that it cannot be done with this model
    wrong      something else came out than should, and nothing said so
    failed     an error
    timeout    no end within the limits

A family is the first letters of the names in one module of timm or torchvision; its member is the one with
the fewest parameters. Where that is more than 60 million, four blocks of it are taken if its constructor has `depth`.
Images are half as wide as the model's own where it runs at that; `off_by` is max|difference| / max|output| in float64,
`parity` the same of the ONNX file in float32. Times are CPU seconds of one thread (`seconds`: of the clock).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo_model import Case, Row, isolated, peer, tried

HERE = Path(__file__).parent
FAMILIES = HERE / "zoo_families.csv"
OUTCOMES = ("pass", "refused", "wrong", "failed", "timeout")
COLUMNS = (
    "source", "family", "model", "input", "params", "outcome", "detail", "macs_kept", "norms", "off_by", "exporter",
    "parity", "latency_ratio", "clock", "trace_s", "trials_s", "check_s", "plan_s", "seconds", "torch_pruning",
)  # fmt: skip
LARGE = 60_000_000
HARDLY = 0.75  # of the MACs left: the peer has hardly pruned


def choose() -> None:
    """Write the smallest member of every family, by parameters, with what its constructor is to be told."""
    import timm
    import torchvision

    rows = []
    modules = timm.models._registry._model_to_module
    for family, names in sorted(_families(timm.list_models(), modules.get)):
        sizes = {name: _parameters(timm.create_model, name) for name in names}
        name = min(names, key=lambda each: sizes[each])
        kwargs = {"depth": 4} if sizes[name] > LARGE and _parameters(timm.create_model, name, depth=4) < LARGE else {}
        rows.append(["timm", family, name, json.dumps(kwargs)])
    get, built_by = torchvision.models.get_model, torchvision.models.get_model_builder
    found = torchvision.models.list_models(module=torchvision.models)
    for family, names in sorted(_families(found, lambda name: built_by(name).__module__.split(".")[-1])):
        name = min(names, key=lambda each: _parameters(get, each, weights=None))
        rows.append(["torchvision", family, name, "{}"])
    _write(FAMILIES, ["source", "family", "model", "kwargs"], rows)


def _families(names: list[str], module_of: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield each family with its members; small models that timm only tests with are left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        letters = re.match("[a-z]+", name).group()  # type: ignore[union-attr]
        if letters != "test":
            found.setdefault(f"{module_of(name)}/{letters}", []).append(name)
    return iter(found.items())


def _parameters(create: Any, name: str, **kwargs: Any) -> float:
    """Return the number of parameters, without making them; more than any where it cannot be made so."""
    import torch
    from torch.overrides import TorchFunctionMode

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if getattr(func, "__name__", "").endswith("_") and not func.__name__.endswith("__"):
                return args[0] if args else kwargs["tensor"]  # type: ignore[index]
            return func(*args, **(kwargs or {}))

    for device in ("meta", "cpu"):  # some constructors compute with values
        try:
            with torch.device(device), WithoutValues():
                return float(sum(each.numel() for each in create(name, **kwargs).parameters()))
        except Exception:  # or have no such argument
            continue
    return float("inf")


def main() -> None:
    """Print a line for every model, keep the table after each, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; without any, all that the table does not have")
    parser.add_argument("--again", action="append", default=[], choices=OUTCOMES)
    parser.add_argument("--source", choices=["timm", "torchvision"])
    parser.add_argument("--classes", type=int)
    parser.add_argument("--channels", type=int)
    parser.add_argument("--seconds", type=float, default=300, help="CPU time of each process")
    parser.add_argument("--gigabytes", type=float, default=8, help="memory of each process")
    parser.add_argument("--csv", type=Path, default=HERE / "zoo.csv")
    parser.add_argument("--choose", action="store_true", help=f"write {FAMILIES.name} anew")
    parser.add_argument("--peer", action="store_true", help="fill the column torch_pruning of the table's rows")
    arguments = parser.parse_args()
    if arguments.choose:
        return choose()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # CPU time is that of the work alone
    chosen = _read(FAMILIES)
    done = {_key(row): row for row in _read(arguments.csv)} if arguments.csv.exists() else {}
    for entry in chosen:
        row = done.get(_key(entry), {})
        if arguments.peer:
            asked = row.get("source") == "timm" and not row["torch_pruning"]
        elif arguments.models or arguments.again:
            asked = entry["model"] in arguments.models or row.get("outcome") in arguments.again
        else:
            asked = not row
        if not asked or arguments.source not in (None, entry["source"]):
            continue
        case = Case(entry["source"], entry["model"], json.loads(entry["kwargs"]), arguments.classes, arguments.channels)
        if arguments.peer:
            found = isolated(peer, (case,), arguments.seconds, arguments.gigabytes)
            row["torch_pruning"] = f"{found['macs_kept']:.2f}" if "macs_kept" in found else found["detail"]
        else:
            with tempfile.TemporaryDirectory() as folder:
                found = tried(case, Path(folder), arguments.seconds, arguments.gigabytes)
            row = dict(zip(("source", "family"), _key(entry), strict=True)) | {"model": case.name, **_shown(found)}
        done[_key(entry)] = row
        told = ("source", "model", "outcome", "latency_ratio", "detail", "torch_pruning")
        print(*(row.get(name, "") for name in told), flush=True)
        rows = [done[_key(each)] for each in chosen if _key(each) in done]
        _write(arguments.csv, COLUMNS, [[each.get(name, "") for name in COLUMNS] for each in rows])
    for source in ("timm", "torchvision"):
        rows = [row for row in done.values() if row["source"] == source]
        if rows:
            print(f"{source}: {summary(rows)}")


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return row["source"], row["family"]


def summary(rows: list[dict[str, str]]) -> str:
    """Return what became of `rows` in one line."""
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in OUTCOMES}
    line = f"{len(rows)} families, " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    passed = [row for row in rows if row["outcome"] == "pass"]
    if passed:
        off = max(float(row["off_by"]) for row in passed)
        check = statistics.median(float(row["check_s"]) / float(row["trace_s"]) for row in passed)
        line += f"; {100 * len(passed) / len(rows):.1f} % pass, off by {off:.0e} at most"
        line += f"; {sum(int(row['norms']) > 0 for row in passed)} narrow a norm; check / trace {check:.2f}"
        ratios = [float(row["latency_ratio"]) for row in passed if row.get("latency_ratio")]
        line += f"; latency ratio {statistics.median(ratios):.2f} (median of {len(ratios)})" if ratios else ""
    theirs = [row["torch_pruning"] for row in rows if row.get("torch_pruning")]
    if theirs:
        pruned = sum(bool(re.fullmatch(r"[0-9.]+", each)) and float(each) <= HARDLY for each in theirs)
        line += f"; torch-pruning prunes {pruned} of {len(theirs)}"
    return line


def _shown(row: Row) -> dict[str, str]:
    """Return the cells of a row."""
    small = ("off_by", "parity")
    return {
        name: (f"{value:.1e}" if name in small else f"{value:.2f}") if isinstance(value, float) else str(value)
        for name, value in row.items()
        if name in COLUMNS
    }


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, header: Any, rows: list[list[str]]) -> None:
    from compress.core.atomic import write_text

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


if __name__ == "__main__":
    main()
