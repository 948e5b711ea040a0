"""Progress bars and log lines on standard error; silent when asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Switch bars and log lines off (or on) for this process."""
    global _quiet
    _quiet = quiet


@contextmanager
def hushed() -> Iterator[None]:
    """Switch bars and log lines off for what runs inside a loop that has a bar of its own."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def say(message: str) -> None:
    """Write one log line to standard error."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` with a bar on standard error (only on a terminal) that shows the time left."""
    if _quiet or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=label, total=total, console=Console(stderr=True), transient=True)
