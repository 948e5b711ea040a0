"""Parts of a tensor that are put together again along another dimension: a reshape in disguise.

Heads that are cut off the features and joined along the batch (`torch.cat(x.split(d, 2), 0)`), and their way back.
Where all parts meet again, single ones of them may go, else none. Of parts of a split that is only known at the end,
so the model is traced once more where it was seen; what single positions are picked from is free until they are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from compress.graph import axes
from compress.graph.axes import Dim

JOINS = ("cat", "concat", "stack")
_USED = "single positions of it are picked out"


@dataclass(frozen=True)
class _Part:
    """Part `index` of `count`, cut by operation `source`; `numbers` is the axis that counts them, where it is one."""

    source: int
    index: int
    count: int
    numbers: Dim | None


class Parts:
    """Follows the equal parts of tensors.

    Args:
        followed: the splits (operations, counted) whose parts were seen to be joined again, and only that.
    """

    def __init__(self, followed: Collection[int] = ()) -> None:
        self.followed = followed
        self.operation = 0
        self._parts = WeakTensorKeyDictionary()
        self._selected = WeakTensorKeyDictionary()
        self._joined: set[int] = set()
        self._used: set[int] = set()

    @property
    def rejoined(self) -> frozenset[int]:
        """The splits whose parts are all joined again and nothing else, though they were not followed."""
        return frozenset(self._joined - self._used)

    def selecting(self, whole: Tensor, place: int) -> int:
        """Return the operation that first picked a position of `whole` along a dimension."""
        first: dict[int, int] = self._selected.setdefault(whole, {})
        return first.setdefault(place, self.operation)

    def note(self, parts: Sequence[Tensor], numbers: Dim | None) -> None:
        """Note all parts that the present operation has cut, in order."""
        for index, part in enumerate(parts):
            self.note_one(part, self.operation, index, len(parts), numbers)

    def note_one(self, part: Tensor, source: int, index: int, count: int, numbers: Dim | None) -> None:
        """Note part `index` of the `count` that the operation `source` began to cut."""
        if count > 1:
            self._parts[part] = _Part(source, index, count, numbers)

    def numbers(self, tensors: Sequence[Tensor]) -> Dim | None:
        """Return the axis that numbers these tensors where they are all parts of one, in order."""
        first = self._all_of_one(tensors)
        return None if first is None else first.numbers

    def consume(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Note what an operation takes; what a part is of stays whole where it takes it by itself."""
        tensors = list(tensors)
        whole = self._all_of_one(tensors) if name in JOINS else None
        if whole is not None:
            self._joined.update([whole.source] if whole.numbers is None else [])
            return
        for tensor in tensors:
            part: _Part | None = self._parts.get(tensor)
            if part is not None:
                self._used.add(part.source)
                if part.numbers is not None:
                    axes.freeze(part.numbers, _USED)

    def _all_of_one(self, tensors: Sequence[Tensor]) -> _Part | None:
        parts: list[_Part | None] = [self._parts.get(tensor) for tensor in tensors]
        first = parts[0] if parts else None
        if first is None or len(parts) != first.count:
            return None
        alike = all(
            part is not None and (part.source, part.index) == (first.source, index) for index, part in enumerate(parts)
        )
        return first if alike else None
