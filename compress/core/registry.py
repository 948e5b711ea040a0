"""Named things that plug in: criteria, losses, training steps, stages, tasks, spaces, strategies and the like.

Every kind has one `Registry`. What ships with the toolkit is found in the modules of the registry's home; a third
party names its module in an entry point of the group `compress.plugins`, which is imported when a registry is first
asked. Either way a module registers what it brings with the same decorator. Nothing is asked while modules are being
imported, so that a plug-in may import whatever it likes.
"""

from __future__ import annotations

import fnmatch
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import Any, Generic, TypeVar

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

    def __init__(self, kind: str, home: str | tuple[str, ...] = (), base: type[Any] | None = None) -> None:
        """Make the registry of `kind`.

        Args:
            kind: what one of the objects is called in messages.
            home: the package (or module, or several) whose modules register what is shipped. They are imported when
                the registry is first asked, so they may lie on any floor.
            base: the class that what is registered has to be a subclass of, where that is so.
        """
        self.kind, self.base = kind, base
        self.homes = (home,) if isinstance(home, str) else home
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that enters an object under one name or several; a name is taken once."""

        def enter(item: T) -> T:
            if self.base is not None and not (isinstance(item, type) and issubclass(item, self.base)):
                raise TypeError(f"{self.kind} {names[0]!r} is {item!r}, no subclass of {self.base.__name__}")
            if not any(f"{module_of(item)}.".startswith(f"{home}.") for home in self.homes):
                self._load_homes()  # first, so that a third party that takes a name of ours is the one to be refused
            for name in names:
                if name in self._items:
                    raise ValueError(f"{self.kind} {name!r} is taken by {module_of(self._items[name])}")
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

    def summary(self, name: str) -> str:
        """Return the first line of the docstring of the object called `name`."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def load(self) -> None:
        """Import what registers here: the modules of the homes, and the plug-ins of third parties."""
        self._load_homes()
        load_plugins()

    def _load_homes(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # what is imported now may ask this registry
        for home in self.homes:
            package = import_module(home)
            for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
                import_module(f"{home}.{module.name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._items


def module_of(item: object) -> str:
    """Return the module that an object was written in."""
    return str(getattr(item, "__module__", type(item).__module__))


def is_ours(item: object) -> bool:
    """Return whether the class of an object comes with the toolkit; what is None is nobody's."""
    return item is None or module_of(type(item)).partition(".")[0] in ("compress", "evaluators", "search", "spaces")


_plugins: dict[str, InputError | None] = {}


def load_plugins() -> None:
    """Import the modules that installed packages name in the entry points `compress.plugins`, once.

    Raises InputError, naming the package, where one cannot be imported; again whenever it is asked again.
    """
    if not _plugins:
        _plugins[""] = None  # what is imported now may ask a registry
        for point in metadata.entry_points(group=GROUP):
            _plugins[point.value] = _load(point)
    broken = [error for error in _plugins.values() if error is not None]
    if broken:
        raise InputError(*(problem for error in broken for problem in error.problems))


def _load(point: metadata.EntryPoint) -> InputError | None:
    try:
        point.load()
    except (Exception, SystemExit) as error:  # a third party's module may raise anything
        owner = point.dist.name if point.dist is not None else "a package"
        return InputError(
            f"the plug-in {point.name!r} ({point.value}) of {owner} cannot be imported: "
            f"{type(error).__name__}: {reason_of(error)}; mend or uninstall it"
        )
    return None
