"""How copies of the two cells are stacked: their order, widths and map sizes (Liu et al. 2019, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.darts.genotype import NODES, Kind
from spaces.darts.options import DARTSConfig
from spaces.layers import halved


@dataclass(frozen=True)
class Site:
    """A place for a cell.

    Attributes:
        kind: which of the two cells stands there.
        channels: of every operation in it (C); it hands on four times as many.
        inputs: channels of states 0 and 1.
        halves: whether state 0 has twice the resolution of state 1.
        size: side of state 1 in pixels.
    """

    kind: Kind
    channels: int
    inputs: tuple[int, int]
    halves: bool
    size: int

    @property
    def stride(self) -> int:
        """By how much operations on states 0 and 1 divide the map."""
        return 2 if self.kind == "reduce" else 1

    @property
    def out_channels(self) -> int:
        """Channels that the cell hands on."""
        return self.channels * len(NODES)

    @property
    def out_size(self) -> int:
        """Side of the map that the cell hands on, in pixels."""
        return halved(self.size) if self.stride == 2 else self.size


def stem_channels(config: DARTSConfig) -> int:
    """Return the channels of the stem's last map."""
    return 3 * config.channels if config.stem == "cifar" else config.channels


def sites(config: DARTSConfig, img_size: int) -> list[Site]:
    """Return the places for cells, in order."""
    found: list[Site] = []
    before, last = (stem_channels(config),) * 2
    imagenet = config.stem == "imagenet"
    size = halved(halved(halved(img_size))) if imagenet else img_size
    channels, halves = config.channels, imagenet
    for index in range(config.layers):
        reduces = index in (config.layers // 3, 2 * config.layers // 3)
        channels *= 2 if reduces else 1
        site = Site("reduce" if reduces else "normal", channels, (before, last), halves, size)
        found.append(site)
        before, last, halves, size = last, site.out_channels, reduces, site.out_size
    return found


def auxiliary_site(config: DARTSConfig) -> int:
    """Return which cell's output the auxiliary head reads."""
    return 2 * config.layers // 3


def auxiliary_size(config: DARTSConfig, img_size: int) -> int:
    """Return the side of the auxiliary head's map after its 5x5 average pooling; below 1 it has none."""
    stride = 3 if config.stem == "cifar" else 2
    return (sites(config, img_size)[auxiliary_site(config)].out_size - 5) // stride + 1
