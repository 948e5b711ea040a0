"""Where a training run stands, on disk: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from compress.core.atomic import replacing
from compress.core.errors import CompressError, InputError
from compress.training.position import Position

SCHEMA = 2  # 1, of version 0.1.0, knew no steps
FILE_NAME = "training.pt"


def write_checkpoint(path: Path, position: Position, settings: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write a checkpoint that replaces the one at `path` only once it is complete.

    Args:
        path: the file.
        position: how far the run has come.
        settings: what must be the same when the run goes on (JSON values).
        tensors: state dictionaries by name (model, optimizer, ema...).

    Raises:
        CompressError: the disk is full or gone; the previous checkpoint is untouched.
    """
    state = {"schema": SCHEMA, "settings": settings, "position": asdict(position), "tensors": tensors}
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:
        kept = "the last complete one is kept" if path.is_file() else "there is none yet to go on from"
        reason = str(error).splitlines()[0]
        raise CompressError(f"cannot write the checkpoint {path} ({reason}); {kept}") from error


def read_checkpoint(path: Path, settings: dict[str, Any]) -> tuple[Position, dict[str, Any]]:
    """Return position and tensors (on the CPU) of the checkpoint at `path`.

    Raises:
        InputError: the file is damaged, of another version, or its run had other `settings`.
    """
    state = _read(path)
    names = {item.name for item in fields(Position)}
    if state.get("schema") != SCHEMA or not {"settings", "position", "tensors"} <= set(state):
        raise InputError(f"{path} is not a training checkpoint of this version; delete it to train from the start")
    if set(state["position"]) != names:
        raise InputError(f"{path} is damaged: its position lacks {names - set(state['position'])}")
    _same_settings(path, state["settings"], settings)
    return Position(**state["position"]), state["tensors"]


def _read(path: Path) -> dict[str, Any]:
    damaged = InputError(f"the training checkpoint {path} is damaged; delete it to train from the start")
    # PyTorch has no one error for a damaged file: what it raises depends on where the damage is.
    try:
        with zipfile.ZipFile(path) as archive:
            sound = archive.testzip() is None  # PyTorch does not compare the checksums that it writes
        state = torch.load(path, map_location="cpu", weights_only=True) if sound else None
    except (
        zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError
    ) as error:  # fmt: skip
        raise damaged from error
    if not isinstance(state, dict):
        raise damaged
    return state


def _same_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        list_of = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise InputError(f"cannot resume from {path}: {list_of}; restore that or start without --resume")


def discard(directory: Path) -> None:
    """Delete the checkpoint of a run that starts anew, and what a killed process left half-written."""
    (directory / FILE_NAME).unlink(missing_ok=True)
    sweep(directory)


def sweep(directory: Path) -> None:
    """Delete temporary files that a process killed while writing a checkpoint has left in `directory`."""
    for leftover in directory.glob(f".{FILE_NAME}.*"):
        leftover.unlink(missing_ok=True)
