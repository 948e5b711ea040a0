"""The one family of exceptions that the command line prints as a sentence."""

from __future__ import annotations

import difflib
import re
import traceback
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
        self.problems = [re.sub(r"\s*[\r\n]+\s*", " ", problem) for problem in problems]
        super().__init__("\n".join(self.problems))


class NotWritten(InputError):
    """A file or folder cannot be written: before a run began that is the user's to mend, in its midst it has failed."""


class Diverged(CompressError):
    """A model went to infinity or NaN; in a search that is a bad candidate, elsewhere a failed run."""


def reason_of(error: BaseException) -> str:
    """Return what an exception says in one line: the system's words, the first line, or its class and its place."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else _unsaid(error)


def _unsaid(error: BaseException) -> str:
    """Return the class of an exception without words, and the line that raised it."""
    name, frames = type(error).__name__, traceback.extract_tb(error.__traceback__)
    if not frames:
        return name
    line = f" ({frames[-1].line})" if frames[-1].line else ""
    return f"{name} at {frames[-1].filename}:{frames[-1].lineno}{line}"


def in_one_line(error: BaseException) -> str:
    """Return what happened in one line: a sentence of ours as it is, any other exception with its class."""
    if isinstance(error, CompressError):
        return " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SystemExit):
        return f"code that was called ended the process ({error.code})"
    name, reason = type(error).__name__, reason_of(error)
    what = reason if reason.startswith(name) else f"{name}: {reason}"
    return f"out of memory ({what})" if is_out_of_memory(error) else what


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that memory ran out, of the machine or of an accelerator."""
    # by name, since torch's class would take seconds to import
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    said = isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    return isinstance(error, MemoryError) or named or said


OTHER_NAMES = {
    "learning_rate": "lr",
    "bs": "batch_size",
    "wd": "weight_decay",
    "random_state": "seed",
    "arch": "name",
    "architecture": "name",
    "weights": "checkpoint",
    "n_epoch": "epochs",
    "iterations": "steps",
}  # what keys are called elsewhere


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean X` for the nearest of `allowed`, or an empty string."""
    words = {str(word).lower(): str(word) for word in allowed}  # YAML has keys like 3
    if (known := OTHER_NAMES.get(str(given).lower())) in words:
        return f"; did you mean {words[known]!r}?"
    near = difflib.get_close_matches(str(given).lower(), list(words), n=1, cutoff=0.6)
    return f"; did you mean {words[near[0]]!r}?" if near else ""
