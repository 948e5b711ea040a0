"""The NASNet space: two cells are searched, copies of them stacked (Zoph et al. 2018)."""

from spaces.nasnet.genotype import BlockGenotype, CellGenotype, Genotype
from spaces.nasnet.options import ConcatLists, NASNetConfig
from spaces.nasnet.space import NASNetSpace

__all__ = ["BlockGenotype", "CellGenotype", "ConcatLists", "Genotype", "NASNetConfig", "NASNetSpace"]
