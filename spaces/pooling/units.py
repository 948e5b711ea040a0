"""Which modules of a network are the units of its chain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn

from compress.core.errors import InputError
from spaces.pooling.calls import Call

Calls = Mapping[str, Call]


def find_units(network: nn.Module, calls: Calls, globs: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the units in the order in which they run.

    Without `globs` they are the longest chain of blocks (modules with several layers) that are named alike, such as
    `blocks.0.1` and `blocks.3.2`; single layers named so belong to it, but for the network's first and what follows
    the last block.

    Raises InputError where there are fewer than two, or where they do not run one after the other.
    """
    found = _matching(calls, globs) if globs else _blocks(network, calls)
    units = sorted(found, key=lambda name: calls[name].start)
    if len(units) < 2:
        what = f"units {list(globs)} name {len(units)} module" if globs else "no chain of blocks was found"
        raise InputError(f"{what}; at least 2 units are needed, modules that map one (N, C, H, W) to another")
    for name, following in pairwise(units):
        if calls[name].end > calls[following].start:
            raise InputError(f"{name} and {following} do not run one after the other")
    return tuple(units)


def _blocks(network: nn.Module, calls: Calls) -> list[str]:
    blocks = [name for name in calls if name and calls[name].on_maps and _is_block(network.get_submodule(name))]
    patterns = Counter(map(_pattern, blocks))
    if not patterns:
        return []
    longest = max(patterns, key=lambda pattern: patterns[pattern])  # of several the first, which is the outermost
    convs = (calls[name].start for name in calls if isinstance(network.get_submodule(name), nn.Conv2d))
    begin = min(convs, default=0)
    end = max(calls[name].start for name in blocks if _pattern(name) == longest)
    alike = [name for name in calls if calls[name].on_maps and _pattern(name) == longest]
    composite = [name for name in alike if any(True for _ in network.get_submodule(name).children())]
    within = [name for name in composite if calls[name].end > begin and calls[name].start <= end]
    return [name for name in within if calls[name].start > begin or name in blocks]


def _is_block(module: nn.Module) -> bool:
    layers = sum(isinstance(each, nn.Conv2d | nn.Linear) for each in module.modules())
    return layers >= 2 and not isinstance(module, nn.Sequential)


def _pattern(name: str) -> str:
    return re.sub(r"\d+[a-z]?(?![a-z])", "#", name)


def _matching(calls: Calls, globs: Sequence[str]) -> list[str]:
    matched: list[str] = []
    for glob in globs:
        names = [name for name in calls if name and fnmatchcase(name, glob)]
        if not names:
            tops = ", ".join(name for name in calls if name and "." not in name)
            raise InputError(f"units: {glob!r} matches no module that runs; the outermost ones are {tops}")
        matched += names
    outermost = {name for name in matched if not any(name.startswith(f"{other}.") for other in matched)}
    for name in sorted(outermost):
        if not calls[name].on_maps:
            raise InputError(f"units: {name} does not run once, from one map (N, C, H, W) to another")
    return sorted(outermost)
