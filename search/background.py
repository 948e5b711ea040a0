"""What is done again and again beside a search."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_logger = logging.getLogger(__name__)


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` every so many seconds in a thread of its own, from the first interval on; it has ended at the exit.

    An exception of `act` (a database that is restarted, a full disk) is logged as a warning, once as long as it stays
    the same, and the next call comes all the same: other hosts take a search that falls silent for dead.
    """
    ended = threading.Event()

    def repeat() -> None:
        said = None
        while not ended.wait(seconds):
            try:
                act()
                said = None
            except Exception as error:  # whatever the storage raises: said, and tried again
                problem = f"{type(error).__name__}: {error}"
                if problem != said:
                    _logger.warning("search: %s; tried again every %g s", problem, seconds)
                said = problem

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
