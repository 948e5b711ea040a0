"""The two cells of a NASNet as data.

A cell has states: 0 is the output of the cell before, 1 that of the cell before it, 2 to 6 are its blocks'. A block
combines two operations on two earlier states. Tables in the style of DARTS number the two inputs the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from compress.core.errors import InputError
from spaces.architecture import Choice

BLOCKS = 5
STATES = BLOCKS + 2
Kind = Literal["normal", "reduction"]
CELLS: tuple[Kind, ...] = ("normal", "reduction")
FIELDS = ("input1", "input2", "op1", "op2", "combine")


@dataclass(frozen=True)
class BlockGenotype:
    """Two operations on two states, added or concatenated."""

    input1: int
    input2: int
    op1: str
    op2: str
    combine: str = "add"


@dataclass(frozen=True)
class CellGenotype:
    """Five blocks, whose outputs are states 2 to 6, and the states that the cell concatenates, ascending."""

    blocks: tuple[BlockGenotype, ...]
    concat: tuple[int, ...]

    def live(self) -> frozenset[int]:
        """Return the states that the output depends on; all of them where every loose end is concatenated."""
        needed = set(self.concat)
        for state in reversed(range(2, STATES)):
            if state in needed:
                block = self.blocks[state - 2]
                needed |= {block.input1, block.input2}
        return frozenset(needed)

    def widths(self, channels: int, second: int) -> dict[int, int]:
        """Return every state's channels in a cell of `channels` whose state 1 has `second`."""
        blocks = {state: channels * (1 + (block.combine == "concat")) for state, block in enumerate(self.blocks, 2)}
        return {0: channels, 1: second, **blocks}


@dataclass(frozen=True)
class Genotype:
    """The cell that keeps the resolution and the cell that halves it."""

    normal: CellGenotype
    reduction: CellGenotype

    def cell(self, kind: Kind) -> CellGenotype:
        """Return one of the two."""
        return self.normal if kind == "normal" else self.reduction

    def choices(self) -> dict[str, Choice]:
        """Return the blocks as choices of the space: `normal.block0.input1` and so on."""
        cells = {kind: self.cell(kind).blocks for kind in CELLS}
        return {
            f"{kind}.block{index}.{field}": getattr(block, field)
            for kind, blocks in cells.items()
            for index, block in enumerate(blocks)
            for field in FIELDS
        }

    def to_dict(self) -> dict[str, Any]:
        """Return `{"normal": {"blocks": [{"input1": 0, ...}, ...], "concat": [...]}, "reduction": ...}`."""
        return {
            kind: {"blocks": [asdict(block) for block in self.cell(kind).blocks], "concat": [*self.cell(kind).concat]}
            for kind in CELLS
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Genotype:
        """Return what `to_dict` wrote; anything of another form is an InputError."""
        try:
            cells = {
                kind: CellGenotype(
                    tuple(BlockGenotype(**block) for block in value[kind]["blocks"]), tuple(value[kind]["concat"])
                )
                for kind in CELLS
            }
        except (KeyError, TypeError) as error:
            form = '{"normal": {"blocks": [{"input1", "input2", "op1", "op2", "combine"}, ...], "concat": [...]}, ...}'
            raise InputError(f"a NASNet genotype is written {form}; got {value!r} ({error})") from None
        for kind, cell in cells.items():
            if len(cell.blocks) != BLOCKS:
                raise InputError(f"{kind}.blocks: a NASNet cell has {BLOCKS} blocks; got {len(cell.blocks)}")
        return cls(**cells)

    @classmethod
    def from_choices(cls, choices: Mapping[str, Choice], concat: Mapping[str, Sequence[int]] | None) -> Genotype:
        """Return the genotype of choices of the space; `concat` of None takes each cell's loose ends."""
        cells = {}
        for kind in CELLS:
            names = [[f"{kind}.block{index}.{field}" for field in FIELDS] for index in range(BLOCKS)]
            blocks = tuple(BlockGenotype(*(choices[name] for name in row)) for row in names)  # type: ignore[arg-type]
            cells[kind] = CellGenotype(blocks, loose_ends(blocks) if concat is None else tuple(concat[kind]))
        return cls(**cells)


def loose_ends(blocks: Sequence[BlockGenotype]) -> tuple[int, ...]:
    """Return the states that no block reads, which the paper's cells concatenate (section 3)."""
    read = {state for block in blocks for state in (block.input1, block.input2)}
    return tuple(state for state in range(STATES) if state not in read)
