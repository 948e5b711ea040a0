"""Members of a family on disk: the best one within a budget as bundle and ONNX file, or all that may be the best."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.bundle import Bundle
from compress.core.atomic import check_writable, write_json
from compress.core.errors import InputError, NotWritten, reason_of
from compress.core.progress import track
from compress.export.exporters import ExportResult
from compress.export.quick import export_quickly
from compress.sorted.budget import Budget
from compress.sorted.family import Family
from compress.sorted.networks import Networks, compare


def write_pick(family: Family, budget: Budget, out: Path) -> dict[str, Any]:
    """Write the best member within `budget` to the new directory `out` and return the content of its pick.json.

    `out` holds bundle/, which needs nothing of the family, model.onnx, checked against it, and pick.json.

    Raises:
        InputError: no member is within the budget, or `out` cannot be a new directory.
        CompressError: the network is another than its part of the family, or could not be exported.
    """
    place = family.best(budget)
    with _new_directory(out) as folder:
        bundle = Networks.open(family).member(place)
        bundle.provenance = [*bundle.provenance, {"stage": "pick", "member": place, "budget": budget.text}]
        found = _exported(bundle, folder / "model.onnx")
        bundle.metrics |= {"onnx_bytes": found.bytes, "onnx_parity_max_rel": found.parity_max_rel}
        bundle.save(folder / "bundle")
        images = bundle.example_inputs(2)
        with torch.no_grad():
            models = Bundle.load(folder / "bundle").model, bundle.model
            again, expected = (bundle.task.tensor(model(images)) for model in models)
            compare(again, expected, f"the bundle of member {place} is another network when opened")
        record = {
            "schema": 1,
            "family": str(family.folder),
            "budget": {key: limit.text for key, limit in budget.limits.items()},
            **_entry(family, place, found),
        }
        write_json(folder / "pick.json", record)
    return record


def write_front(family: Family, out: Path) -> dict[str, Any]:
    """Write every member of the front as ONNX to the new directory `out` and return the content of its index.json.

    Raises as `write_pick` does.
    """
    networks = Networks.open(family)
    entries = []
    with _new_directory(out) as folder:
        for number, place in enumerate(track(family.front, "writing members"), start=1):
            name = f"{number:02d}.onnx"
            entries.append({"file": name, **_entry(family, place, _exported(networks.member(place), folder / name))})
        index = {"schema": 1, "family": str(family.folder), "members": entries}
        write_json(folder / "index.json", index)
    return index


def _exported(bundle: Bundle, path: Path) -> ExportResult:
    return export_quickly(bundle.model, bundle.example_inputs(2), path, bundle.task)


def _entry(family: Family, place: int, found: ExportResult) -> dict[str, Any]:
    """Return what is told of a member that was written."""
    parity = {"onnx_bytes": found.bytes, "onnx_parity_max_rel": found.parity_max_rel}
    return {"member": place, **family.members[place].to_dict(), **parity}


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` when the block ends without an error."""
    if out.exists() or out.is_symlink():
        raise InputError(f"--out  {out} is there already and stays as it is; name another directory")
    check_writable(out.parent)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:60]}.") as temporary:
            folder = Path(temporary) / "new"
            folder.mkdir()
            yield folder
            folder.rename(out)
    except OSError as error:
        raise NotWritten(f"--out  {out} cannot be written: {reason_of(error)}") from error
