"""The published encodings of a path: one code per layer, or the operations stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.core.errors import InputError
from spaces.architecture import Choice, either
from spaces.hytra.fabric import Fabric

SEPARATORS = str.maketrans("", "", " |,-_")


def read_codes(code: Any, fabric: Fabric) -> dict[str, Choice]:
    """Return the choices of a published encoding.

    Args:
        code: a string of one digit per layer with optional separators, a list of such strings or of integers; or the
            operations of each stage, largest map first, as one list per scale (1 ResConv, 0 ResAtt).
        fabric: whose paths are allowed.

    Raises:
        InputError: with every wrong position, naming its decision and what is allowed.
    """
    if isinstance(code, Sequence) and len(code) > 0 and all(isinstance(stage, list | tuple) for stage in code):
        return choices_of(_from_stages(code, fabric), fabric)
    return choices_of(_flat(code, fabric), fabric)


def write_codes(path: Sequence[int], fabric: Fabric) -> str:
    """Return the codes of a path as one string, its blocks apart."""
    digits = "".join(str(code) for code in path)
    starts = range(0, fabric.layers, fabric.block_layers)
    return " ".join(digits[start : start + fabric.block_layers] for start in starts)


def write_stages(path: Sequence[int], fabric: Fabric) -> list[list[int]]:
    """Return the operations of a path stage by stage, largest map first; 1 is ResConv, 0 ResAtt."""
    stages: list[list[int]] = [[] for _ in fabric.sizes]
    for code in path:
        scale, operation = fabric.place(code)
        stages[-1 - scale].append(int(operation == "conv"))
    return stages


def _flat(code: Any, fabric: Fabric) -> list[int]:
    path: list[Any] = list(code) if isinstance(code, str | list | tuple) else []
    if all(isinstance(part, str) for part in path):
        digits = "".join(path).translate(SEPARATORS)
        path = [int(digit) for digit in digits] if digits.isascii() and digits.isdigit() else []
    if len(path) != fabric.layers or not all(type(part) is int for part in path):
        raise InputError(
            f"a path is {fabric.layers} codes of 0 to {fabric.codes(len(fabric.sizes))[-1]}, as a list or a string, "
            f"or {len(fabric.sizes)} lists of 0 and 1; got {code!r}"
        )
    return path


def _from_stages(stages: Sequence[Sequence[Any]], fabric: Fabric) -> list[int]:
    """Return the codes of operations that are given stage by stage."""
    count = sum(len(stage) for stage in stages)
    if len(stages) != len(fabric.sizes) or count != fabric.layers:
        raise InputError(
            f"stages are {len(fabric.sizes)} lists with {fabric.layers} layers together; "
            f"got {len(stages)} lists with {count}"
        )
    path: list[int] = []
    problems = []
    for stage, operations in enumerate(stages):
        scale = len(stages) - 1 - stage
        allowed = (1, 0) if scale < fabric.attention else (1,)
        for operation in operations:
            if type(operation) is not int or operation not in allowed:
                at = f"layer{len(path)}.operation: got {operation!r} on a map of {_pixels(scale, fabric)}"
                problems.append(f"{at}; allowed {either(allowed)} (1 conv, 0 attention)")
            path.append(fabric.code(scale, "conv" if operation else "attention"))
    if problems:
        raise InputError(*problems)
    return path


def choices_of(path: Sequence[int], fabric: Fabric) -> dict[str, Choice]:
    """Return the choices of a path, or of its first layers; InputError with every code that is not allowed."""
    problems = []
    choices: dict[str, Choice] = {}
    before: int | None = None
    for layer, code in enumerate(path):
        allowed = fabric.allowed(layer, before)
        name = f"layer{layer}.step" if layer else "layer0.scale"
        scale, operation = fabric.place(code) if code in fabric.codes(len(fabric.sizes)) else (-1, "conv")
        if scale not in allowed:
            problems.append(f"{name}: got code {code}{_after(before, fabric)}; allowed {_codes_of(allowed, fabric)}")
        elif layer == 0:
            choices[name] = scale
        elif len(allowed) > 1:
            choices[name] = "stay" if scale == before else "down"
        if 0 <= scale < fabric.attention:
            choices[f"layer{layer}.operation"] = operation
        before = scale if scale >= 0 else before
    if problems:
        raise InputError(*problems)
    return choices


def _after(before: int | None, fabric: Fabric) -> str:
    return "" if before is None else f" after a map of {_pixels(before, fabric)}"


def _codes_of(scales: Sequence[int], fabric: Fabric) -> str:
    """Return the codes of `scales` in words."""
    places = {code: fabric.place(code) for code in fabric.codes(len(fabric.sizes))}
    words = [f"{code} ({op} at {_pixels(scale, fabric)})" for code, (scale, op) in places.items() if scale in scales]
    return either(tuple(words)) if words else "none, since an earlier layer is on too large a map"


def _pixels(scale: int, fabric: Fabric) -> str:
    return f"{fabric.sizes[scale]}x{fabric.sizes[scale]}"
