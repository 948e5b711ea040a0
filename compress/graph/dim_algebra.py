"""Dimensions cut, joined, flattened and split: what slices, concatenations and reshapes do to the axes they carry."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod

from compress.graph.axes import (
    MAX_REPEATS,
    ONE,
    Dim,
    Segment,
    cut,
    dim_size,
    expand,
    freeze,
    fresh,
    refine,
    segment_size,
    unify,
)

PARTS = "it numbers the parts that it is split into"
BLOCKS = "it numbers the blocks that groups across a concatenation are made of"


def narrow(dim: Dim, start: int, length: int) -> Dim:
    """Return the part of `dim` at positions start ... start + length - 1, cutting axes at its ends.

    One of the equal parts of a factor is a factor itself, and not cut off, which would break the products that it
    belongs to: halves of each head's width (rotary embeddings), or a single position.
    """
    whole = expand(dim)
    size = dim_size(whole)
    factor = size > 1 and len(whole) == 1 and "inner" in whole[0][0].marks
    if factor and 0 < length < size and size % length == start % length == 0:
        numbers, part = split(whole, (size // length, length))
        freeze(numbers, "single positions of it are picked out" if length == 1 else PARTS)
        return part
    if len(whole) == 1 and len(whole[0]) > 1 and (reason := whole[0][0].frozen) is not None:
        row = segment_size(whole[0][1:])
        if start % row == length % row == 0:
            return flatten([fresh(length // row, reason), (whole[0][1:],)])
    for at in (start, start + length):
        if not _ensure_boundary(dim, at):
            freeze(dim, "it is cut inside a group of positions")
            return fresh(length, "it is cut inside a group of positions")
    taken, offset = [], 0
    for segment in expand(dim):
        size = segment_size(segment)
        if start <= offset and offset + size <= start + length:
            taken.append(segment)
        offset += size
    return tuple(taken)


def _ensure_boundary(dim: Dim, at: int) -> bool:
    offset = 0
    for segment in expand(dim):
        size = segment_size(segment)
        if offset < at < offset + size:
            return cut(segment, at - offset)
        offset += size
    return True


def concatenate(dims: Sequence[Dim]) -> Dim:
    """Return the dimension that lists the positions of all `dims` one after the other."""
    return tuple(segment for dim in dims for segment in dim)


def flatten(dims: Sequence[Dim]) -> Dim:
    """Return the one dimension that row-major merging of `dims` gives."""
    result: Dim = ONE
    for dim in dims:
        inner = expand(dim)
        if len(inner) == 1:
            result = tuple(segment + inner[0] for segment in result)
        elif result == ONE:
            result = inner
        elif dim_size(result) <= MAX_REPEATS:
            freeze(result, "it repeats a concatenation of widths")
            result = inner * dim_size(result)
        else:
            freeze(result, "it repeats a concatenation of widths")
            freeze(inner, "it is repeated too often to be followed")
            result = fresh(dim_size(result) * dim_size(inner), "it is repeated too often to be followed")
    return result


def split(dim: Dim, sizes: Sequence[int]) -> tuple[Dim, ...]:
    """Return the dimensions that row-major splitting of `dim` into `sizes` gives."""
    if len(sizes) == 1:
        return (dim,)
    if sizes[0] == 1:
        return (ONE, *split(dim, sizes[1:]))
    inner = prod(sizes[1:])
    whole = expand(dim)
    if len(whole) == 1:
        halves = _split_product(whole[0], sizes[0])
        if halves is not None:
            return (halves[0], *split(halves[1], sizes[1:]))
    elif (rows := _rows(whole, inner)) is not None:
        return (rows[0], *split(rows[1], sizes[1:]))
    elif all(_ensure_boundary(dim, at) for at in range(inner, dim_size(dim), inner)):
        chunks = [narrow(dim, at, inner) for at in range(0, dim_size(dim), inner)]
        for chunk in chunks[1:]:
            unify(chunks[0], chunk)
        return (fresh(sizes[0], "it numbers the equal parts of a concatenation"), *split(chunks[0], sizes[1:]))
    elif (blocks := _blocks(whole, inner)) is not None:
        return (fresh(sizes[0], BLOCKS), *split(blocks, sizes[1:]))
    freeze(dim, "it is reshaped in a way that does not follow its grouping")
    return tuple(fresh(size, "it is reshaped in a way that does not follow its grouping") for size in sizes)


def _rows(whole: Dim, inner: int) -> tuple[Dim, Dim] | None:
    """Return the rows of size `inner` of each width of a concatenation one after the other, and what all rows hold.

    None where a width is no number of rows, or all are one row each.
    """
    sizes = [segment_size(segment) for segment in whole]
    if any(size % inner for size in sizes) or max(sizes) == inner:
        return None
    found = _each_split(whole, inner)
    if found is None:
        return None
    for _, row in found[1:]:
        unify(found[0][1], row)
    return concatenate([numbers for numbers, _ in found]), found[0][1]


def _blocks(whole: Dim, inner: int) -> Dim | None:
    """Return what each part of size `inner` is made of where parts span the widths of a concatenation; None: nothing.

    All widths are read as rows of blocks of one size, the largest that divides them and the parts. What a block holds
    may become less, the same in all of them; how many there are stays.
    """
    most = gcd(inner, *(segment_size(segment) for segment in whole))
    for size in (size for size in range(most, 1, -1) if most % size == 0):
        found = _each_split(whole, size)
        if found is not None:
            for numbers, block in found:
                freeze(numbers, BLOCKS)
                unify(found[0][1], block)
            return flatten([fresh(inner // size, BLOCKS), found[0][1]])
    return None


def _each_split(whole: Dim, inner: int) -> list[tuple[Dim, Dim]] | None:
    """Split every segment into rows of size `inner`: (numbers of the rows, row); None where one has no such factor."""
    found = []
    for each in whole:
        (segment,) = expand((each,))  # anew: one before may have been of the same axes
        halves = _split_product(segment, segment_size(segment) // inner)
        if halves is None:
            return None
        found.append(halves)
    return found


def _split_product(segment: Segment, outer: int) -> tuple[Dim, Dim] | None:
    """Split a product after its first `outer` combinations; None where no factor allows it."""
    taken = 1
    for place, axis in enumerate(segment):
        if taken == outer:
            return (segment[:place],), (segment[place:],)
        wanted, rest = divmod(outer, taken)
        if rest:
            return None
        if wanted < axis.size:
            if axis.size % wanted:
                return None
            refine(axis, wanted, axis.size // wanted)
            return _halves(segment, place)
        taken *= axis.size
    return ((segment,), ONE) if taken == outer else None


def _halves(segment: Segment, place: int) -> tuple[Dim, Dim]:
    """Split a product inside the factor at `place`, which has just been refined into two."""
    product = segment[place].product
    assert product is not None
    return (segment[:place] + product[:1],), (product[1:] + segment[place + 1 :],)


def reshape(dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """Return the dimensions of a row-major reshape of `dims` to `shape`."""
    old = [dim for dim in dims if dim_size(dim) != 1]
    result: list[Dim] = []
    i = j = 0
    while j < len(shape):
        if shape[j] == 1:
            result.append(ONE)
            j += 1
            continue
        first_old, first_new = i, j
        size_old, size_new = dim_size(old[i]), shape[j]
        i, j = i + 1, j + 1
        while size_old != size_new:
            if size_old < size_new:
                size_old *= dim_size(old[i])
                i += 1
            else:
                size_new *= shape[j]
                j += 1
        result += split(flatten(old[first_old:i]), shape[first_new:j])
    return result
