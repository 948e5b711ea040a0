"""What each unit costs at each resolution, measured once on a network without storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compress.core.errors import InputError, is_out_of_memory
from compress.core.meta import ShapesAlone
from spaces.layers import Layer
from spaces.pooling.calls import first_line
from spaces.pooling.chain import Chain
from spaces.pooling.units import Calls


@dataclass(frozen=True)
class Measured:
    """A part of the network in one run: its MACs for one image and the shape (N, C, H, W) that it hands on."""

    macs: int
    shape: tuple[int, ...]


Key = tuple[int, int, bool]
"""Part (0: stem, then the units, last the head), halvings before it, whether it halves."""


@dataclass(frozen=True)
class CostTable:
    """Parameters of every part, and its MACs wherever a placement of the halvings can put it."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    params: tuple[int, ...]
    measured: dict[Key, Measured]

    def layers(self, positions: Sequence[int]) -> list[Layer]:
        """Return one row per part for the halvings at `positions`."""
        rows: list[Layer] = []
        for part, key in enumerate(_keys(positions, len(self.names))):
            found = self.measured[key]
            channels, side = found.shape[1], found.shape[2] if len(found.shape) == 4 else 1
            stride = 2 if key[2] else 1
            rows.append(
                Layer(self.names[part], self.kinds[part], channels, side, stride, self.params[part], found.macs)
            )
        return rows


def measure(network: nn.Module, calls: Calls, chain: Chain, images: Tensor, halvings: int, affine: bool) -> CostTable:
    """Measure a backbone without storage, in eval mode, of which `calls` is a trace; it is prepared on the way.

    Every (unit, resolution, halves or not) that a placement of `halvings` can reach runs once.
    `affine`: whether parameters of batch norm count.

    Raises InputError, naming the unit, where a halving moved there does not halve the map.
    """
    blocks = [network.get_submodule(name) for name in chain.units]
    kinds = ("stem", *(type(block).__name__.lower() for block in blocks), "head")
    params = _params(network, calls, chain, affine)
    chain.prepare(network)
    measured: dict[Key, Measured] = {}
    for positions in covering(len(chain.units), halvings):
        chain.place(network, (), positions)
        _run(network, chain, images, positions, measured)
        chain.place(network, positions, ())
    names = ("stem", *(f"unit{index}" for index in range(len(blocks))), "head")
    return CostTable(names, kinds, tuple(params), measured)


def covering(units: int, halvings: int) -> Iterator[tuple[int, ...]]:
    """Yield placements that bring every unit to every resolution it can have, both halving there and not.

    All halvings in a row, anywhere: the unit in the row's place i halves with i halvings before it. Some at the front
    and the rest at the end: the units between do not halve, with that many before them.
    """
    for first in range(1, units - halvings + 1):
        yield tuple(range(first, first + halvings))
    for front in range(1, halvings):
        yield (*range(1, front + 1), *range(units - halvings + front, units))


def _keys(positions: Sequence[int], parts: int) -> Iterator[Key]:
    for part in range(parts):
        unit = part - 1
        yield part, sum(position < unit for position in positions), unit in positions


def _run(
    network: nn.Module, chain: Chain, images: Tensor, positions: Sequence[int], measured: dict[Key, Measured]
) -> None:
    """Run the placement `positions` and enter what each part costs; units measured before only hand on a map."""
    keys = list(_keys(positions, len(chain.units) + 2))
    units = [network.get_submodule(name) for name in chain.units]
    counter = FlopCounterMode(display=False)
    ends: list[Measured] = []

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ends.append(Measured(counter.get_total_flops() // 2, tuple(inputs[0].shape)))

    def leave(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ends.append(Measured(counter.get_total_flops() // 2, tuple(output.shape)))

    hooks = [units[0].register_forward_pre_hook(enter), *(unit.register_forward_hook(leave) for unit in units)]
    known = [(unit, measured[key]) for unit, key in zip(units, keys[1:-1], strict=True) if key in measured]
    try:
        with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), _skipping(known), counter, ShapesAlone():
            logits = network(images)
    except Exception as error:  # a module may raise anything at a map of a size that it does not expect
        if is_out_of_memory(error):
            raise
        part = chain.units[len(ends) - 1] if 0 < len(ends) <= len(units) else "the network"
        where = ", ".join(chain.units[unit] for unit in positions)
        raise InputError(
            f"{part} fails with the map halved at {where}: {first_line(error)}; another `how` or other `units` may work"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    ends.append(Measured(counter.get_total_flops() // 2, tuple(logits.shape)))
    _check_sides(chain, ends, positions)
    for key, end, start in zip(keys, ends, [0, *(end.macs for end in ends)], strict=False):
        measured.setdefault(key, Measured(end.macs - start, end.shape))


@contextmanager
def _skipping(known: Sequence[tuple[nn.Module, Measured]]) -> Iterator[None]:
    """Let modules hand on an empty map of the shape that they are known to hand on."""
    for module, found in known:
        module.__dict__["forward"] = lambda x, shape=found.shape: x.new_empty(shape)
    try:
        yield
    finally:
        for module, _ in known:
            del module.__dict__["forward"]


def _check_sides(chain: Chain, ends: Sequence[Measured], positions: Sequence[int]) -> None:
    for unit in range(1, len(chain.units)):
        before, after = ends[unit].shape[2:], ends[unit + 1].shape[2:]
        wanted = tuple(-(-side // 2) for side in before) if unit in positions else tuple(before)
        if tuple(after) != wanted:
            step = f"takes the map from {tuple(before)} to {tuple(after)} pixels"
            raise InputError(
                f"{chain.units[unit]} {step} where it should hand on {wanted}, so no halving can be moved past it"
            )


def _params(network: nn.Module, calls: Calls, chain: Chain, affine: bool) -> list[int]:
    """Return the parameters of every part; a layer outside the units belongs to the part that it runs in."""
    counts = [0] * (len(chain.units) + 2)
    first = calls[chain.units[0]].start
    ends = [calls[name].end for name in chain.units]
    for name, module in network.named_modules():
        if not affine and isinstance(module, nn.BatchNorm2d):
            continue
        start = calls[name].start if name in calls else ends[-1]
        part = 0 if start < first else 1 + sum(end <= start for end in ends)
        counts[part] += sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return counts
