"""One cell out of all that differ in the order of their blocks or slots only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from spaces.nasnet.genotype import BLOCKS, BlockGenotype, CellGenotype

Key = tuple[tuple[int, str, int, str, str], ...]
_ORDERS = tuple(permutations(range(BLOCKS)))


def canonical_blocks(cell: CellGenotype, listed: bool, filler: BlockGenotype) -> tuple[BlockGenotype, ...]:
    """Return the smallest blocks among those of all cells that compute the same as `cell`.

    Slots may be swapped and blocks stand in any order that their inputs allow: only the order of a sum or of
    concatenated channels changes. Blocks that the output does not depend on become `filler`.

    Args:
        cell: the cell.
        listed: its concat list is given, not its loose ends: the listed places must then hold the same blocks.
        filler: reads state 0 only.
    """
    live = cell.live()
    blocks = [block if state in live else filler for state, block in enumerate(cell.blocks, 2)]
    kept = {state - 2 for state in cell.concat if state >= 2}
    orders = _ORDERS
    if listed:
        orders = tuple(order for order in _ORDERS if {order[place] for place in kept} == kept)
    keys = (_renamed(blocks, order) for order in orders)
    smallest = min(key for key in keys if key is not None)
    return tuple(BlockGenotype(one, other, op1, op2, how) for one, op1, other, op2, how in smallest)


def _renamed(blocks: Sequence[BlockGenotype], order: Sequence[int]) -> Key | None:
    """Return the blocks in `order` with their slots sorted; None where one would read a later one."""
    names = [0, 1, *(order.index(block) + 2 for block in range(BLOCKS))]
    key = []
    for state, block in enumerate((blocks[index] for index in order), 2):
        one, other = sorted([(names[block.input1], block.op1), (names[block.input2], block.op2)])
        if other[0] >= state:
            return None
        key.append((*one, *other, block.combine))
    return tuple(key)
