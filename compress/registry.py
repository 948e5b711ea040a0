"""Named things that plug in with one new file: criteria, losses, spaces, strategies."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from compress.errors import InputError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table name -> object that is filled by a decorator.

    >>> criteria = Registry("criterion")
    >>> @criteria.register("magnitude")
    ... def magnitude(): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters an object under `name`."""

        def enter(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return enter

    def get(self, name: str) -> T:
        """Return the object called `name`; an unknown name is an `InputError` naming the nearest."""
        if name not in self._items:
            raise InputError(
                f"unknown {self.kind} {name!r}; allowed: {', '.join(self.names())}{did_you_mean(name, self._items)}"
            )
        return self._items[name]

    def names(self, glob: str = "*") -> list[str]:
        """Return the sorted names that match `glob`."""
        return sorted(fnmatch.filter(self._items, glob))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._items
