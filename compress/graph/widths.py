"""Which widths a group may take: multiples that the runtime's fast path wants, and not too few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from compress.graph.graph import Group

HEAD_DIM_ALIGN = 8  # a head's matrices are packed by rows of 8 or fewer, also where wider channels pay off


@dataclass(frozen=True)
class WidthRules:
    """What limits the widths of groups.

    `align` is the multiple, for all kinds or by kind; `min_width` (channels and MLP units) and `min_fraction` say
    what every group keeps at least. `full` gives the widths of the dense model where the graph is that of a model
    pruned before.
    """

    align: int | Mapping[str, int] = 1
    min_width: int = 1
    min_fraction: float = 0.1
    full: Mapping[str, int] = field(default_factory=dict)


def unit_width(group: Group) -> int:
    """Return how many channels of its layers one unit of a group is: more than 1 for whole groups of convolutions."""
    return min((part.positions[0].numel() for part in group.slices if part.role == "out"), default=1)


def step(group: Group, rules: WidthRules) -> int:
    """Return the number of units between two allowed widths of a group.

    Channels and MLP units move so that the real width is a multiple of `align`; a group narrower than two
    multiples takes the largest power of two up to a quarter of its width instead. Head widths use at most 8.
    Heads move one by one.
    """
    align = rules.align if isinstance(rules.align, int) else rules.align.get(group.kind, 1)
    if group.kind == "heads":
        return 1
    channels = 1 if group.kind == "head_dims" else unit_width(group)
    if group.kind == "head_dims":
        align = min(align, HEAD_DIM_ALIGN)
    real = rules.full.get(group.name, group.size) * channels
    if real < 2 * align:
        align = min(align, 2 ** max(0, (real // 4).bit_length() - 1))
    return align // math.gcd(align, channels)


def allowed_widths(group: Group, rules: WidthRules) -> list[int]:
    """Return the widths (in units) that a group may have, ascending; its present width is always the last."""
    full = rules.full.get(group.name, group.size)
    least = max(1, math.ceil(rules.min_fraction * full - 1e-9))
    if group.kind in ("channels", "mlp"):
        least = max(least, math.ceil(rules.min_width / unit_width(group)))
    by = step(group, rules)
    first = math.ceil(least / by) * by
    return [*range(first, group.size, by), group.size]
