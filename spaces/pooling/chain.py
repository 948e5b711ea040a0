"""The chain of a backbone: its units, where it halves the map by itself, and how the halvings are moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from spaces.pooling.moves import How, inside, is_even, leaves_between, new_stride, own_strides, strided_layers
from spaces.pooling.switches import Switch, turn, wrap
from spaces.pooling.units import Calls, find_units


@dataclass(frozen=True)
class Chain:
    """How the halvings of a network are moved; everything by module name, so that it serves every copy of it.

    Attributes:
        units: names of the units before they are wrapped.
        halved: the units at which the backbone halves the map by itself.
        reduction: pixels of the image per pixel of the map that the first unit hands on, along one side.
        switches: for each unit, what is on where it halves the map and off elsewhere.
        even_convs: convolutions that need padding once they do not halve.
    """

    units: tuple[str, ...]
    halved: tuple[int, ...]
    reduction: int
    switches: tuple[tuple[Switch, ...], ...]
    even_convs: tuple[str, ...]

    def prepare(self, network: nn.Module) -> None:
        """Make the backbone `network` ready for `place`; no unit after the first halves the map then."""
        wrap(network, self.units, self.even_convs)
        for switches in self.switches:
            turn(network, switches, False)

    def place(self, network: nn.Module, before: Sequence[int], after: Sequence[int]) -> None:
        """Move the halvings of a prepared network from the units `before` to the units `after`."""
        for unit in set(before) ^ set(after):
            turn(network, self.switches[unit], unit in after)


def find_chain(network: nn.Module, calls: Calls, globs: Sequence[str] | None, how: How) -> Chain:
    """Return the chain of `network`, of which `calls` is a trace.

    Raises InputError, naming the layer, where there is no chain or where one of its halvings cannot be moved.
    """
    units = find_units(network, calls, globs)
    halved: list[int] = []
    even: list[str] = []
    switches: list[tuple[Switch, ...]] = [()]
    sides = [calls[name].sides[1] for name in units]
    for index, step in enumerate(pairwise(sides), start=1):
        unit = units[index]
        strided: list[str] = []
        if step[0] != step[1]:
            region = leaves_between(network, calls, calls[units[index - 1]].end, calls[unit].end)
            strided = strided_layers(network, calls, region, unit, step)
            halved.append(index)
        own = [
            switch for name in strided for switch in own_strides(network.get_submodule(name), _moved(name, unit), how)
        ]
        even += [_moved(name, unit) for name in strided if is_even(network.get_submodule(name))]
        if how == "max_pool":
            own.append(Switch(unit, "pools", False, True))
        elif not strided:
            own += new_stride(network, calls, unit)
        switches.append(tuple(own))
    images = calls[""].before
    assert images is not None
    return Chain(units, tuple(halved), -(-images[2] // sides[0]), tuple(switches), tuple(even))


def _moved(name: str, unit: str) -> str:
    return inside(unit, name) if f"{name}.".startswith(f"{unit}.") else name
