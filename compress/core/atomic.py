"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.core.errors import InputError, NotWritten, reason_of

_LEAST_BYTES = 1 << 16  # so much must fit on the disk before a run begins


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    A link stays, and what it names is replaced. Raises `NotWritten` where the system refuses (the disk is full, `path`
    is a folder, rights are missing), and where a device would be lost, such as /dev/null.
    """
    temporary = None
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not path.is_file() and not path.is_dir():
        raise NotWritten(f"cannot write {path}: it is no regular file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_file(path: Path, flag: str, suffix: str) -> None:
    """Raise `InputError` where `path` cannot become the file, such as ".onnx", that `flag` of a command writes.

    A file of another kind that is there, a recipe say, stays as it is.
    """
    if path.is_dir():
        raise InputError(f"{flag}  {path} is a directory; name a file in it, such as {path / ('new' + suffix)}")
    if path.exists() and not (path.is_file() and path.suffix == suffix):
        raise InputError(f"{flag}  {path} is there already and is no {suffix} file; it stays as it is, name another")
    check_writable(path.parent, flag)


def check_writable(path: Path, flag: str = "--out") -> None:
    """Raise `InputError` where no file can be written in `path`; leaves nothing behind."""
    try:
        existing = path
        while not existing.exists() and existing != existing.parent:
            if existing.is_symlink():
                there = f"{existing} is a link to {existing.readlink()}, which does not exist"
                raise InputError(f"{flag}  {path} cannot be written: {there}")
            existing = existing.parent
        if not existing.is_dir():
            raise InputError(f"{flag}  {path} cannot be written: {existing} is a file")
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(bytes(_LEAST_BYTES))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{flag}  {str(path)!r} cannot be written: {reason_of(error)}") from error
