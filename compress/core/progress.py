"""Progress on standard error: bars on a terminal, elsewhere a line after each minute of silence; none when asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from compress.core.formatting import duration

T = TypeVar("T")

SILENCE = 60.0
"""Seconds without a line after which a loop tells how far it is, where there is no terminal."""

_quiet = False
_spoke = time.monotonic()


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
    global _spoke
    _spoke = time.monotonic()
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yield `items`, and tell on standard error how far the loop is and how much time it needs yet.

    Args:
        items: of the loop.
        label: what the loop does.
        total: items of the whole; None: as many as `items` says it has.
        done: of those, how many were done before.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _quiet:
        yield from items
    elif not sys.stderr.isatty():
        yield from _told(items, label, total, done)
    else:
        from rich.console import Console
        from rich.progress import track as rich_track

        console = Console(stderr=True)
        yield from rich_track(items, label, total=total, completed=done, console=console, transient=True)


def _told(items: Iterable[T], label: str, total: int | None, done: int) -> Iterator[T]:
    """Yield `items`, with a line where standard error was silent for a minute, or this loop told nothing for one."""
    began = told = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - min(_spoke, told) >= SILENCE:
            of = "" if total is None else f" of {total}"
            left = "" if total is None else f", about {duration((total - done - count) * (now - began) / count)} left"
            say(f"{label}: {done + count}{of}{left}")
            told = _spoke
