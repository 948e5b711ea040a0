"""What was done to a base model: the transforms of a bundle, in order, on disk and done again."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compress.bundle_files import PLAN, TRANSFORMS, read_json
from compress.core.errors import InputError, in_one_line, is_out_of_memory
from compress.core.problems import under, validated
from compress.core.tensors import Inputs
from compress.transforms import Transform, transforms


def followed(done: tuple[Transform, ...], by: Transform) -> tuple[Transform, ...]:
    """Return the transforms `done` and afterwards `by`, the last two as one where they can be."""
    joined = done[-1].then(by) if done else None
    return (*done, by) if joined is None else (*done[:-1], joined)


def to_json(done: tuple[Transform, ...]) -> str:
    """Return the transforms as the content of transforms.json."""
    return json.dumps([transform.model_dump(mode="json") for transform in done], allow_nan=False)


def from_json(content: Any) -> tuple[Transform, ...]:
    """Return the transforms of a decoded transforms.json; InputError where it is damaged or has one not known here."""
    if not isinstance(content, list):
        raise InputError("a list of transforms is needed")
    return tuple(map(_transform, content))


def _transform(content: Any) -> Transform:
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if not isinstance(kind, str):
        raise InputError("a transform has no kind")
    if kind not in transforms:
        names = ", ".join(transforms)
        raise InputError(f"unknown transform {kind!r}; allowed: {names}; install the package that brings it")
    return validated(transforms.get(kind), content, under(f"{kind}."))


def read(directory: Path, parts: Collection[str], key: str) -> tuple[Transform, ...]:
    """Return the transforms of the bundle in `directory`, which has `parts`; InputError, naming `key`, if damaged."""
    old = "plan" in parts
    if not old and "transforms" not in parts:
        return ()
    file = directory / (PLAN if old else TRANSFORMS)
    content = read_json(file, key)
    try:
        return from_json([{"kind": "narrow", "plan": content}] if old else content)
    except InputError as error:
        raise InputError(f"{key}: {str(file)!r} cannot be read: {'; '.join(error.problems)}") from error


def redo(done: tuple[Transform, ...], module: nn.Module, example_inputs: Inputs, where: str) -> nn.Module:
    """Return what the transforms make of a newly built base `module`, which is used up.

    Raises InputError, saying `where` they are from, where one was made for another model.
    """
    for transform in done:
        try:
            module = transform.apply(module, example_inputs)
        except Exception as error:  # a third party's transform may raise anything
            if is_out_of_memory(error):
                raise
            reason = in_one_line(error)[:300]
            raise InputError(f"{where}, the transform {transform.kind!r} does not fit its base: {reason}") from error
    return module
