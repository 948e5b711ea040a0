"""Named things that plug in: criteria, losses, training steps, stages, tasks, spaces, strategies and the like.

Every kind has one `Registry`. What ships with the toolkit is found in the modules of the registry's `home`; a third
party names its module in an entry point of the group `compress.plugins`, which is imported when a registry is first
asked. Either way a module registers what it brings with the same decorator.
"""

from __future__ import annotations

import fnmatch
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import Generic, TypeVar

from compress.core.errors import InputError, did_you_mean, reason_of

T = TypeVar("T")

GROUP = "compress.plugins"
"""The entry points of third parties; each names a module (or package) that registers when it is imported."""


class Registry(Generic[T]):
    """A table name -> object that is filled by a decorator.

    >>> criteria = Registry("criterion", home="compress.criteria")
    >>> @criteria.register("magnitude")
    ... def magnitude(): ...
    """

    def __init__(self, kind: str, home: str | None = None) -> None:
        """Make the registry of `kind`, whose shipped objects are in the modules of the package (or module) `home`."""
        self.kind, self.home = kind, home
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters an object under `name`; a name is taken once."""

        def enter(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return enter

    def get(self, name: str) -> T:
        """Return the object called `name`; an unknown name is an `InputError` naming the nearest."""
        self.load()
        if name not in self._items:
            raise InputError(
                f"unknown {self.kind} {name!r}; allowed: {', '.join(self.names())}{did_you_mean(name, self._items)}"
            )
        return self._items[name]

    def names(self, glob: str = "*") -> list[str]:
        """Return the sorted names that match `glob`."""
        self.load()
        return sorted(fnmatch.filter(self._items, glob))

    def load(self) -> None:
        """Import what registers here: the modules of `home`, and the plug-ins of third parties."""
        if self._loaded:
            return
        self._loaded = True  # what is imported now may ask this registry
        if self.home is not None:
            package = import_module(self.home)
            for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
                import_module(f"{self.home}.{module.name}")
        load_plugins()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._items


_plugins_loaded = False


def load_plugins() -> None:
    """Import the modules that installed packages name in the entry points `compress.plugins`, once.

    Raises InputError, naming the package, where one cannot be imported.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # a third party's module may raise anything
            owner = point.dist.name if point.dist is not None else "a package"
            raise InputError(
                f"the plug-in {point.name!r} ({point.value}) of {owner} cannot be imported: {reason_of(error)}; "
                "mend or uninstall it"
            ) from error
