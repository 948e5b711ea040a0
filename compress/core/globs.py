"""Globs over the modules of a model, as recipes name the layers that something is done to or not."""

from __future__ import annotations

from fnmatch import fnmatchcase


def named(module: str, glob: str) -> bool:
    """Return whether `glob` matches a module's name or that of a module that it is in: layer1 names layer1.0.conv2."""
    parts = module.split(".")
    return any(fnmatchcase(".".join(parts[:end]), glob) for end in range(1, len(parts) + 1))
