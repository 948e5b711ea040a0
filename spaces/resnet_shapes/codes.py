"""Shapes as text, and as the published configuration files have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.core.errors import InputError
from spaces.architecture import Choice

FORM = (
    "a code has the stem's width and the three stages, each its blocks with the widths of their convolutions, such as "
    "16/9-16,11-16/32-32/64-64, or the two lists xblocks and xchannels of a published configuration"
)


def to_text(stem: int, stages: Sequence[Sequence[Sequence[int]]]) -> str:
    """Return `16/9-16,11-16/32-32/64-64`: stages after strokes, blocks after commas."""
    texts = (",".join("-".join(map(str, widths)) for widths in blocks) for blocks in stages)
    return "/".join([str(stem), *texts])


def from_code(code: Any, blocks: int, convs: int) -> dict[str, Choice]:
    """Return the decisions of a code for stages of up to `blocks` blocks of `convs` convolutions.

    Of a published configuration, the widths of blocks beyond a stage's depth count for nothing.

    Raises InputError for what is no code.
    """
    if isinstance(code, str):
        return _from_text(code, convs)
    if isinstance(code, Sequence) and len(code) == 2 and all(_numbers(part) for part in code):
        return _from_lists(code[0], code[1], blocks, convs)
    raise InputError(f"space resnet_shapes: {FORM}; got {code!r}")


def _from_text(code: str, convs: int) -> dict[str, Choice]:
    stem, *stages = code.split("/")
    found: dict[str, str] = {"stem": stem}
    for stage, text in enumerate(stages, 1):
        parts = [block.split("-") for block in text.split(",")]
        if any(len(widths) != convs for widths in parts):
            raise InputError(
                f"space resnet_shapes: a block has {convs} convolutions; got {text!r} in the code {code!r}"
            )
        found[depth_name(stage)] = str(len(parts))
        for block, widths in enumerate(parts, 1):
            found |= {conv_name(stage, block, conv): width for conv, width in enumerate(widths, 1)}
    if len(stages) != 3 or not all(part.strip().isdecimal() for part in found.values()):
        raise InputError(f"space resnet_shapes: {FORM}; got {code!r}")
    return {name: int(part) for name, part in found.items()}


def _from_lists(xblocks: Sequence[int], xchannels: Sequence[int], blocks: int, convs: int) -> dict[str, Choice]:
    length = 2 + 3 * blocks * convs  # the image's channels, the stem's, those of all convolutions
    if len(xblocks) != 3 or len(xchannels) != length:
        raise InputError(
            f"space resnet_shapes: a configuration has 3 depths and {length} widths, the image's channels first; got "
            f"{len(xblocks)} and {len(xchannels)}"
        )
    widths = iter(xchannels[2:])
    found: dict[str, Choice] = {"stem": xchannels[1]}
    for stage, depth in enumerate(xblocks, 1):
        found[depth_name(stage)] = depth
        for block in range(1, blocks + 1):
            row = {conv_name(stage, block, conv): next(widths) for conv in range(1, convs + 1)}
            found |= row if block <= depth else {}
    return found


def _numbers(part: Any) -> bool:
    return isinstance(part, Sequence) and all(isinstance(each, int) and not isinstance(each, bool) for each in part)


def conv_name(stage: int, block: int, conv: int) -> str:
    """Return the decision of a convolution's width; all are counted from 1."""
    return f"stage{stage}.block{block}.conv{conv}"


def depth_name(stage: int) -> str:
    """Return the decision of a stage's depth, counted from 1."""
    return f"stage{stage}.depth"


def stages_of(choices: Mapping[str, Choice], convs: int) -> list[list[list[int]]]:
    """Return the widths of all convolutions that the networks of `choices` have, by stage and block."""
    return [
        [
            [int(choices[conv_name(stage, block, conv)]) for conv in range(1, convs + 1)]
            for block in range(1, int(choices[depth_name(stage)]) + 1)
        ]
        for stage in (1, 2, 3)
    ]
