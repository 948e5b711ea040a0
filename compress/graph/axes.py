"""Axes: what the positions along a tensor dimension stand for, so that coupled widths are found by algebra.

A dimension is a **concatenation of products of axes**: the output of a fused `qkv` layer is the product
(3, heads, head_dim), the input of a DenseNet layer the concatenation of the outputs of all layers before it.
Operations refine axes (a reshape splits one into a product, a slice cuts one into a concatenation) and join them
(a residual sum makes two axes one). An axis that an operation could not survive without is *frozen*, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import prod

MAX_REPEATS = 64  # a product whose inner factor is a concatenation is written out at most this often


class Axis:
    """One index that can be shortened: a width, the heads of an attention, the width of a head."""

    __slots__ = ("concat", "frozen", "marks", "parent", "product", "size")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.marks: set[str] = set()
        self.parent: Axis | None = None
        self.product: tuple[Axis, ...] | None = None
        self.concat: tuple[Axis, ...] | None = None

    def root(self) -> Axis:
        """Return the axis that stands for all axes joined with this one."""
        axis = self
        while axis.parent is not None:
            axis = axis.parent
        return axis


Segment = tuple[Axis, ...]  # a product of axes, outermost first; the empty product has size 1
Dim = tuple[Segment, ...]  # a concatenation of segments

ONE: Dim = ((),)


def fresh(size: int, frozen: str | None = None) -> Dim:
    """Return a dimension of one new axis (size 1: of none; size 0: one that stays)."""
    return ONE if size == 1 else ((Axis(size, frozen or (None if size else "it is empty")),),)


def segment_size(segment: Segment) -> int:
    """Return the number of positions in a product of axes."""
    return prod(axis.size for axis in segment)


def dim_size(dim: Dim) -> int:
    """Return the number of positions along a dimension."""
    return sum(segment_size(segment) for segment in dim)


def expand(dim: Dim) -> Dim:
    """Return `dim` written in axes that are neither joined to another nor refined."""
    done: list[Segment] = []
    todo = [list(segment) for segment in reversed(dim)]
    while todo:
        segment = todo.pop()
        for place, axis in enumerate(segment):
            root = axis.root()
            if root.product is not None:
                todo.append(segment[:place] + list(root.product) + segment[place + 1 :])
                break
            if root.concat is not None:
                todo.extend(reversed(_write_out(segment[:place], root.concat, segment[place + 1 :])))
                break
            segment[place] = root
        else:
            done.append(tuple(axis for axis in segment if axis.size != 1))
    return tuple(done)


def _write_out(outer: list[Axis], parts: tuple[Axis, ...], inner: list[Axis]) -> list[list[Axis]]:
    """Write a product with a concatenation inside as a concatenation of products; the outer axes are frozen."""
    for axis in outer:
        _freeze_axis(axis, "it repeats a concatenation of widths")
    repeats = segment_size(tuple(outer))
    if repeats > MAX_REPEATS:
        for axis in parts:
            _freeze_axis(axis, "it is repeated too often to be followed")
        whole = Axis(repeats * sum(part.size for part in parts), "it is repeated too often to be followed")
        return [[whole, *inner]]
    return [[part, *inner] for _ in range(repeats) for part in parts]


def axes_of(dim: Dim) -> Iterator[Axis]:
    """Yield every elementary axis of `dim` (once for each place)."""
    for segment in expand(dim):
        yield from segment


def is_frozen(dim: Dim) -> bool:
    """Return whether no axis of `dim` can be shortened."""
    return all(axis.frozen is not None for axis in axes_of(dim))


def is_inner(dim: Dim) -> bool:
    """Return whether `dim` is one axis that was the inner factor of another and may be repeated elsewhere."""
    whole = expand(dim)
    return len(whole) == 1 and len(whole[0]) == 1 and "inner" in whole[0][0].marks and whole[0][0].frozen is None


def freeze(dim: Dim, reason: str) -> None:
    """Keep every axis of `dim` whole, for a reason that the report will show."""
    for axis in axes_of(dim):
        _freeze_axis(axis, reason)


def mark(dim: Dim, role: str) -> None:
    """Note a role (`heads`, `head_dims`) on every axis of `dim` that is not frozen."""
    for axis in axes_of(dim):
        if axis.frozen is None:
            axis.marks.add(role)


def _freeze_axis(axis: Axis, reason: str) -> None:
    root = axis.root()
    if root.product is None and root.concat is None:
        root.frozen = root.frozen or reason
        return
    for part in axes_of(((root,),)):
        part.frozen = part.frozen or reason


def unify(a: Dim, b: Dim) -> None:
    """Make two dimensions of one size share their axes; what cannot be matched is frozen on both sides."""
    pending = [(a, b)]
    while pending:
        x, y = (expand(dim) for dim in pending.pop())
        if x == y:
            continue
        if len(x) == len(y) == 1:
            if not _unify_products(x[0], y[0]):
                _give_up(x, y)
            continue
        if (parts := _numbered(x, y) or _numbered(y, x)) is not None:
            pending += parts
            continue
        size_x, size_y = segment_size(x[0]), segment_size(y[0])
        if (ends := _first_common_end(x, y)) != (len(x), len(y)):
            pending += [(x[ends[0] :], y[ends[1] :]), (x[: ends[0]], y[: ends[1]])]
        elif cut(x[0], size_y) if size_x > size_y else cut(y[0], size_x):
            pending.append((x, y))
        else:
            _give_up(x, y)


def _first_common_end(x: Dim, y: Dim) -> tuple[int, int]:
    """Return after how many segments of each two concatenations of one size first come to the same position."""
    ends = {end: count for count, end in enumerate(accumulate(map(segment_size, y)), 1)}
    for count, end in enumerate(accumulate(map(segment_size, x)), 1):
        if end in ends:
            return count, ends[end]
    return len(x), len(y)


def _numbered(x: Dim, y: Dim) -> list[tuple[Dim, Dim]] | None:
    """Return what to join where `y` lists parts, and `x` is a product that can be read as so many rows of each.

    To cut `x` would write out every product that it is a factor of: the heads whose halves are turned (RoPE). It is
    read in rows where these are many and stay, or where `y` has parts of one size, one a row. The width of a head is
    made to rows only where that ties nothing: the parts are the same width again, or all of them stay.
    """
    if len(x) != 1 or not x[0]:
        return None
    segment, sizes = x[0], [segment_size(part) for part in y]
    if segment[0].frozen is None:
        if len(set(sizes)) != 1:
            return None
        if segment[0].size != len(y):
            alike = len(set(y)) == 1 or all(axis.frozen is not None for part in y for axis in part)
            if "inner" not in segment[0].marks or segment[0].size % len(y) or not alike:
                return None
            refine(segment[0], len(y), segment[0].size // len(y))
            (segment,) = expand(x)
        segment[0].frozen = "it numbers parts that are alike"
    reason, row = segment[0].frozen, segment_size(segment[1:])
    if any(size % row for size in sizes):
        return None
    return [
        ((fresh(size // row, reason)[0] + segment[1:],), (part,))
        for size, part in zip(sizes[::-1], y[::-1], strict=True)
    ]


def _give_up(*dims: Dim) -> None:
    for dim in dims:
        freeze(dim, "its grouping does not match that of a coupled layer")


def _unify_products(x: Segment, y: Segment) -> bool:
    """Join two products of one size factor by factor; return whether the factors could be matched."""
    while x or y:
        if not x or not y:
            return segment_size(x or y) == 1
        a, b = x[0], y[0]
        if a is b:
            x, y = x[1:], y[1:]
        elif a.size == b.size:
            _join(a, b)
            x, y = x[1:], y[1:]
        elif a.size % b.size == 0:
            refine(a, b.size, a.size // b.size)
        elif b.size % a.size == 0:
            refine(b, a.size, b.size // a.size)
        else:
            return False
        refreshed = expand((x,)), expand((y,))
        if len(refreshed[0]) != 1 or len(refreshed[1]) != 1:
            unify(*refreshed)
            return True
        x, y = refreshed[0][0], refreshed[1][0]
    return True


def _join(a: Axis, b: Axis) -> None:
    b.parent = a
    a.frozen = a.frozen or b.frozen
    a.marks |= b.marks


def refine(axis: Axis, outer: int, inner: int) -> None:
    """Write an axis as the product of two; both inherit what is known of it."""
    axis.product = (Axis(outer, axis.frozen), Axis(inner, axis.frozen))
    for part in axis.product:
        part.marks = set(axis.marks)
    axis.product[1].marks.add("inner")


def cut(segment: Segment, at: int) -> bool:
    """Cut the outermost axis of a product so that a boundary falls after position `at`; return success."""
    first, inner = segment[0], segment_size(segment[1:])
    if at % inner:
        return False
    first.concat = (Axis(at // inner, first.frozen), Axis(first.size - at // inner, first.frozen))
    for part in first.concat:
        part.marks = set(first.marks)
    return True
