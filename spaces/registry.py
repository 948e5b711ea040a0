"""Search spaces by name. A new space is a new file in this package; it is found by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compress.core.errors import InputError, did_you_mean, reason_of
from compress.core.problems import validated
from compress.core.registry import Registry
from spaces.architecture import Architecture
from spaces.nni import NNISpace
from spaces.space import Preset, Space

spaces: Registry[type[Space]] = Registry("space", home="spaces", base=Space)


def space_class(name: str) -> type[Space]:
    """Return the class of the space called `name`; an unknown name is an InputError naming the nearest."""
    if name.startswith("nni:"):
        return NNISpace
    return spaces.get(name)


def create(name: str, options: Mapping[str, Any] | None = None) -> Space:
    """Return the space called `name`, or `nni:package.module.Class`, with `options` of its `Config`.

    Raises InputError with every wrong option, naming it and what is allowed.
    """
    kind = space_class(name)
    given = dict(options or {})
    if name.startswith("nni:"):
        given = {"model_space": name.removeprefix("nni:")} | given
    space = kind(validated(kind.Config, given, partial(_sentence, name)))
    space.name = name
    return space


def presets(name: str) -> Mapping[str, Preset]:
    """Return the presets of the space called `name`."""
    return space_class(name).presets


def open_preset(name: str, preset: str, options: Mapping[str, Any] | None = None) -> tuple[Space, Architecture | None]:
    """Return the space called `name` as its preset sets it (`options` win), and the preset's architecture if any."""
    known = presets(name)
    if preset not in known:
        allowed = f"allowed: {', '.join(known)}" if known else "it has none"
        raise InputError(f"space {name} has no preset {preset!r}; {allowed}{did_you_mean(preset, known)}")
    point = known[preset]
    space = create(name, {**point.options, **(options or {})})
    return space, None if point.code is None else space.parse(point.code)


def read_architecture(
    path: str | Path, name: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Space, Architecture]:
    """Read a JSON file: what `Space.to_dict` wrote, the choices alone, or a published code.

    A file that names its space needs no `name`; where both are given they must agree; `options` win over the file's.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    inside = content if isinstance(content, dict) and {"space", "choices"} & content.keys() else {}
    if inside and "choices" not in inside:
        raise InputError(f"{path}: names a space but has no choices")
    if not isinstance(inside.get("options", {}), dict):
        raise InputError(f"{path}: options must be a mapping; got {inside['options']!r}")
    found = inside.get("space", name)
    if found is None:
        raise InputError(f"{path}: names no space; give one of {', '.join(spaces)}")
    if name not in (None, found):
        raise InputError(f"{path}: is an architecture of space {found!r}; got {name!r}")
    space = create(str(found), {**inside.get("options", {}), **(options or {})})
    try:
        return space, space.parse(inside.get("choices", content))
    except InputError as error:
        raise InputError(*(f"{path}: {problem}" for problem in error.problems)) from None


def _sentence(name: str, key: str, text: str) -> str:
    return f"space {name}, option {key}: {text}" if key else f"space {name}: {text}"
