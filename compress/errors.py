"""The one family of exceptions that the command line prints as a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompressError(Exception):
    """A run failed for a reason that the user can read; exit code 1."""

    exit_code = 1


class InputError(CompressError):
    """What the user handed over (recipe, checkpoint, data, model, flag) is wrong; exit code 2.

    `problems` holds every problem found, root cause first, one sentence each.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class Diverged(CompressError):
    """A model went to infinity or NaN; in a search that is a bad candidate, elsewhere a failed run."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean X` for the nearest of `allowed`, or an empty string."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
