"""Members on disk: the best one within a budget as bundle and ONNX file, or all that may be the best."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.bundle import Bundle
from compress.core.atomic import check_writable, write_json
from compress.core.errors import InputError, NotWritten, reason_of
from compress.core.progress import track
from compress.core.tensors import called
from compress.picking.budget import Budget
from compress.picking.comparison import compare
from compress.picking.members import Members, Models, Written


def write_pick(
    members: Members, opened: Callable[[], Models], budget: Budget, out: Path | None = None
) -> dict[str, Any]:
    """Write the best member within `budget` to the directory `out` and return the content of its pick.json.

    It holds bundle/, which needs nothing else, model.onnx, checked against it, and pick.json. It has to be new; without
    `out` it is `default_place`, where an earlier pick is replaced.

    Args:
        members: what there is to choose from.
        opened: opens the models of the members.
        budget: what the chosen one may cost.
        out: where it goes.

    Raises:
        InputError: no member is within the budget, or `out` cannot be a new directory.
        CompressError: the network is another than the index tells of, or could not be exported.
    """
    place = members.best(budget)
    with _directory(out, default_place(members, budget), "pick.json") as folder:
        models = opened()
        bundle = models.member(place)
        bundle.provenance = [*bundle.provenance, {"stage": "pick", "member": place, "budget": budget.text}]
        found = models.write(place, bundle, folder / "model.onnx")
        bundle.metrics |= {"onnx_bytes": found.bytes, "onnx_parity_max_rel": found.parity_max_rel}
        bundle.save(folder / "bundle")
        images = bundle.example_inputs(2)
        with torch.no_grad():
            both = Bundle.load(folder / "bundle").model, bundle.model
            again, expected = (bundle.task.tensor(called(model, images)) for model in both)
            compare(again, expected, f"the bundle of member {place} is another network when opened")
        record = {
            "schema": 1,
            members.kind: str(members.folder),
            "budget": {key: limit.text for key, limit in budget.limits.items()},
            **_entry(members, place, found),
        }
        write_json(folder / "pick.json", record)
    return record


def write_front(members: Members, opened: Callable[[], Models], out: Path | None = None) -> dict[str, Any]:
    """Write every member that is the best within some budget as ONNX to `out` and return what its index.json holds.

    The directory and arguments are as in `write_pick`, and so is what is raised.
    """
    entries = []
    with _directory(out, default_place(members), "index.json") as folder:
        models = opened()
        for number, place in enumerate(track(members.front, "writing members"), start=1):
            name = f"{number:02d}.onnx"
            found = models.write(place, models.member(place), folder / name)
            entries.append({"file": name, **_entry(members, place, found)})
        index = {"schema": 1, members.kind: str(members.folder), "members": entries}
        write_json(folder / "index.json", index)
    return index


def default_place(members: Members, budget: Budget | None = None) -> Path:
    """Return where the pick of a budget lies if nothing else is said, or (None) the front."""
    name = "front" if budget is None else "_".join(f"{key}-{limit.text}" for key, limit in budget.limits.items())
    return members.picks / name


def _entry(members: Members, place: int, found: Written) -> dict[str, Any]:
    """Return what is told of a member that was written."""
    parity = {"onnx_bytes": found.bytes, "onnx_parity_max_rel": found.parity_max_rel}
    return {"member": place, **members.members[place].to_dict(), **parity}


@contextmanager
def _directory(out: Path | None, default: Path, record: str) -> Iterator[Path]:
    """Yield a folder that becomes `out` when the block ends without an error, or `default` in place of an earlier one.

    What is at `default` is an earlier one if it holds `record`.
    """
    target, key = (default, "pick") if out is None else (out, "--out")
    there = target.exists() or target.is_symlink()
    earlier = out is None and not target.is_symlink() and (target / record).is_file()
    if there and not earlier:
        other = "name another directory" if out is not None else "move it away, or name a new directory with --out"
        raise InputError(f"{key}  {target} is there already and stays as it is; {other}")
    check_writable(target.parent, key)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:60]}.") as temporary:
            folder = Path(temporary) / "new"
            folder.mkdir()
            yield folder
            if earlier:
                target.rename(aside := Path(temporary) / "earlier")
            try:
                folder.rename(target)
            except OSError:
                if earlier:
                    aside.rename(target)
                raise
    except OSError as error:
        raise NotWritten(f"{key}  {target} cannot be written: {reason_of(error)}") from error
