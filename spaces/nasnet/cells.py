"""A cell: repairs of its two inputs, five blocks, and the concatenation of some of their states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spaces.nasnet.genotype import BlockGenotype, CellGenotype
from spaces.nasnet.parts import Parts
from spaces.nasnet.skeleton import Site, Source


class DropPath(nn.Module):
    """ScheduledDropPath: drops a path per example, more often as training goes on (Zoph et al. 2018, appendix A.7).

    keep(t) = 1 - t (1 - keep), where t is the share of training that is over.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.progress = 0.0

    @property
    def probability(self) -> float:
        """Probability of keeping a path now."""
        return 1 - self.progress * (1 - self.keep)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to itself, with some examples zero and the others scaled up in training."""
        keep = self.probability
        if not self.training or keep == 1:
            return x
        kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(keep)
        return x * (kept / keep)


class Block(nn.Module):
    """Two operations on two states of the cell, added or concatenated."""

    def __init__(self, state: int, genotype: BlockGenotype, op1: nn.Module, op2: nn.Module) -> None:
        super().__init__()
        self.state = state
        self.inputs = (genotype.input1, genotype.input2)
        self.concatenates = genotype.combine == "concat"
        self.drops = (genotype.op1 != "identity", genotype.op2 != "identity")
        self.op1, self.op2 = op1, op2

    def forward(self, first: Tensor, second: Tensor, drop_path: DropPath) -> Tensor:
        """Map two states to one of C channels (added) or 2C (concatenated); an identity is never dropped."""
        first, second = self.op1(first), self.op2(second)
        if self.drops[0]:
            first = drop_path(first)
        if self.drops[1]:
            second = drop_path(second)
        return torch.cat([first, second], 1) if self.concatenates else first + second


class Cell(nn.Module):
    """The cell of `genotype` at `site`, reading the maps `first` (state 0) and `second` (state 1).

    Blocks that the output does not depend on, which only an explicit concat list can leave over, are not built.
    """

    def __init__(
        self, site: Site, genotype: CellGenotype, first: Source, second: Source, keep: float, parts: Parts
    ) -> None:
        super().__init__()
        live = genotype.live()
        widths = genotype.widths(site.channels, second.channels if site.first else site.channels)
        self.prepare0 = parts.prepare(site, 0, first) if 0 in live else None
        self.prepare1 = _second(site, second, parts) if 1 in live else None
        self.drop_path = DropPath(keep)
        self.blocks = nn.ModuleDict()
        for state in range(2, 2 + len(genotype.blocks)):
            if state in live:
                block = genotype.blocks[state - 2]
                self.blocks[f"block{state - 2}"] = _block(site, state, block, widths, parts)
        self.concat = genotype.concat
        self.fits = nn.ModuleDict()
        for state in genotype.concat:
            halve = site.stride == 2 and state < 2
            if halve or widths[state] != site.channels:
                self.fits[f"state{state}"] = parts.fit(site, state, widths[state], halve)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map the outputs of the last two cells to (N, C x states concatenated, H / stride, W / stride)."""
        states = {}
        if self.prepare0 is not None:
            states[0] = self.prepare0(first)
        if self.prepare1 is not None:
            states[1] = self.prepare1(second)
        for block in self.blocks.values():
            assert isinstance(block, Block)
            one, other = block.inputs
            states[block.state] = block(states[one], states[other], self.drop_path)
        kept = [self.fits[f"state{n}"](states[n]) if f"state{n}" in self.fits else states[n] for n in self.concat]
        return torch.cat(kept, 1) if len(kept) > 1 else kept[0]


def _second(site: Site, source: Source, parts: Parts) -> nn.Module:
    """Return what brings the output of the cell before the last to this one's resolution and width."""
    if site.first or (source.channels == site.channels and not site.second_halves):
        return nn.Identity()
    return parts.prepare(site, 1, source)


def _block(site: Site, state: int, genotype: BlockGenotype, widths: dict[int, int], parts: Parts) -> Block:
    slots = ((genotype.input1, genotype.op1), (genotype.input2, genotype.op2))
    op1, op2 = (
        parts.operation(site, state - 2, slot, name, widths[read], site.stride if read < 2 else 1)
        for slot, (read, name) in enumerate(slots, 1)
    )
    return Block(state, genotype, op1, op2)
