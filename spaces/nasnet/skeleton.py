"""How copies of the two cells are stacked: their order, widths, inputs and map sizes (Zoph et al. 2018, figure 2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from spaces.layers import halved
from spaces.nasnet.genotype import Genotype, Kind
from spaces.nasnet.options import NASNetConfig


@dataclass(frozen=True)
class Source:
    """A map that a cell reads: `states` of an earlier cell, `each` channels wide, one behind the other."""

    states: tuple[int, ...]
    each: int

    @property
    def channels(self) -> int:
        """Channels of the whole map."""
        return len(self.states) * self.each


@dataclass(frozen=True)
class Site:
    """A place for a cell.

    Attributes:
        name: such as `stage1_cell1`.
        kind: which of the two cells stands there.
        channels: of every operation in it (C).
        inputs: the maps that it reads as states 0 and 1, counting 0 for the stem and k for the k-th cell.
        second_halves: whether state 1 comes from a map with twice the resolution of state 0's.
    """

    name: str
    kind: Kind
    channels: int
    inputs: tuple[int, int]
    second_halves: bool

    @property
    def stride(self) -> int:
        """By how much the cell divides the map."""
        return 2 if self.kind == "reduction" else 1

    @property
    def first(self) -> bool:
        """Whether there is no cell before it: state 1 is then the stem's map as it is."""
        return self.inputs[0] == self.inputs[1]


@lru_cache(maxsize=16)
def sites(config: NASNetConfig) -> tuple[Site, ...]:
    """Return the places for cells, in order."""
    found: list[Site] = []
    levels = [0]  # halvings since the stem, per map
    for name, kind, channels in _names(config):
        before = len(found)
        second = max(before - 1, 0)
        if config.wiring == "large" and kind == "normal" and found and found[-1].name.startswith("reduction"):
            second = found[-1].inputs[1]
        found.append(Site(name, kind, channels, (before, second), levels[second] < levels[before]))
        levels.append(levels[before] + (kind == "reduction"))
    return tuple(found)


def _names(config: NASNetConfig) -> list[tuple[str, Kind, int]]:
    names: list[tuple[str, Kind, int]] = []
    if config.stem == "imagenet":
        names += [("stem1", "reduction", config.filters // 4), ("stem2", "reduction", config.filters // 2)]
    for stage in (1, 2, 3):
        channels = config.filters * 2 ** (stage - 1)
        if stage > 1:
            names.append((f"reduction{stage - 1}", "reduction", channels))
        names += [(f"stage{stage}_cell{cell}", "normal", channels) for cell in range(1, config.cells_per_stage + 1)]
    return names


def auxiliary_position(config: NASNetConfig) -> int:
    """Return which map the auxiliary head reads: the output of the last cell of stage 2."""
    names = [site.name for site in sites(config)]
    return names.index(f"stage2_cell{config.cells_per_stage}") + 1


def keep_probability(config: NASNetConfig, index: int) -> float:
    """Return the probability of keeping a path in cell number `index` (from 0) at the end of training."""
    return 1 - (index + 1) / len(sites(config)) * (1 - config.drop_path_keep)


def sources(config: NASNetConfig, genotype: Genotype) -> list[Source]:
    """Return the stem's map and every cell's."""
    cells = [Source(genotype.cell(site.kind).concat, site.channels) for site in sites(config)]
    return [Source((0,), config.first_channels), *cells]


def map_sizes(config: NASNetConfig, img_size: int) -> list[int]:
    """Return the side in pixels of the stem's map and of every cell's, for images of `img_size`."""
    sizes = [img_size if config.stem == "cifar" else (img_size - 1) // 2]
    for site in sites(config):
        sizes.append(halved(sizes[-1]) if site.kind == "reduction" else sizes[-1])
    return sizes


def auxiliary_size(config: NASNetConfig, img_size: int) -> int:
    """Return the side of the auxiliary head's map after its 5x5 average pooling of stride 3; below 1 it has none."""
    return (map_sizes(config, img_size)[auxiliary_position(config)] - 5) // 3 + 1
