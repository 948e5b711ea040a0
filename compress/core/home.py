"""Paths that begin with `~`."""

from __future__ import annotations

from pathlib import Path


def at_home(path: Path | str) -> Path:
    """Return `path` with the user's folder for `~`; as it is where it names a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
