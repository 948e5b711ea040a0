"""What sections of a recipe ask of its task, found out before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from evaluators.tasks.task import Task


def unfit_parts(
    section: Any, task: Task, key: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield (key, sentence) of a section and of every part of it that asks for what `task` does not have.

    What not every task allows (a loss, a criterion, a step) has a method `unfit(task)`, which returns why it cannot be
    used with `task`, whose sizes are not known, and what can; None where it can. Of a section that is refused as a
    whole, the parts are not told.
    """
    if hasattr(section, "unfit") and (problem := section.unfit(task)):
        yield key, problem
        return
    parts: Any = ()
    if isinstance(section, BaseModel):
        parts = ((name, getattr(section, name)) for name in type(section).model_fields)
    elif isinstance(section, Mapping):
        parts = section.items()
    elif isinstance(section, list | tuple):
        parts = enumerate(section)
    for name, part in parts:
        yield from unfit_parts(part, task, (*key, name))
