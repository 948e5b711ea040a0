"""Decisions in a few lines: those that differ only in the numbers of their names are told as one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from spaces.architecture import Choice, Condition, Decision


@dataclass(frozen=True)
class Group:
    """Decisions with the same choices and names like `stage1–5.layer1–4.kernel`.

    `section` is the first word of the name, `name` the rest; `condition` says where they are taken ("": always).
    """

    section: str
    name: str
    choices: tuple[Choice, ...]
    condition: str
    members: tuple[Decision, ...]

    @property
    def full_name(self) -> str:
        """Return section and name in one."""
        return f"{self.section}.{self.name}" if self.section else self.name


def group_decisions(decisions: Sequence[Decision], by_condition: bool = True) -> list[Group]:
    """Return `decisions` as groups, in order of their first members.

    With `by_condition`, decisions taken under different conditions do not share a group.
    """
    found: dict[object, list[Decision]] = {}
    for decision in decisions:
        condition = _condition_pattern(decision) if by_condition else ""
        found.setdefault((_pattern(decision.name), decision.choices, condition), []).append(decision)
    return [_group(members, by_condition) for members in found.values()]


def show_choices(choices: Iterable[Choice], limit: int = 60) -> str:
    """Return choices separated by commas; from the middle of long lists some are left out."""
    words = [str(choice) for choice in choices]
    if len(", ".join(words)) <= limit:
        return ", ".join(words)
    first = words[:1]
    while len(", ".join([*first, words[len(first)]])) + len(words[-1]) + 20 <= limit:
        first.append(words[len(first)])
    return f"{', '.join(first)}, … {words[-1]} ({len(words)} choices)"


def about(number: int) -> str:
    """Return `number` as `2.18e19`, however long it is."""
    return f"{Decimal(number):.2e}".replace("e+", "e")


def _group(members: list[Decision], by_condition: bool) -> Group:
    names = [decision.name for decision in members]
    full_name = _shared_name(names)
    section, dot, name = full_name.partition(".")
    if " … " in full_name and dot:  # no range names them all, but their first word may be the same
        dot = dot if all(name.startswith(f"{section}.") for name in names) else ""
        name = name.replace(f" … {section}.", " … ")
    if not dot:
        section, name = "", full_name
    condition = _shared_condition(members) if by_condition else ""
    return Group(section, name, members[0].choices, condition, tuple(members))


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _condition_pattern(decision: Decision) -> str:
    """Return the text of the condition without the numbers of the decisions that it names."""
    if decision.when is None:
        return ""
    return _mentions(decision, decision.when).sub(lambda match: _pattern(match[0]), decision.when.text)


def _shared_condition(members: list[Decision]) -> str:
    """Return the condition of all `members`, whose texts differ only in the numbers of the decisions they name."""
    conditions = [(each, each.when) for each in members if each.when is not None]
    if not conditions:
        return ""
    mentioned = [_mentions(decision, when).findall(when.text) for decision, when in conditions]
    shared = iter([_shared_name(list(dict.fromkeys(names))) for names in zip(*mentioned, strict=True)])
    first, when = conditions[0]
    return _mentions(first, when).sub(lambda match: next(shared), when.text)


def _mentions(decision: Decision, condition: Condition) -> re.Pattern[str]:
    """Return what finds decisions in the text of `condition`: `stage2.depth`, or `layer 3` where one is layer3.step."""
    words = {word for name in (decision.name, *condition.reads) for word in re.findall(r"([^\W\d]+)\d", name)}
    names = [re.escape(name) for name in sorted(condition.reads, key=len, reverse=True)]
    names += [rf"{word} \d+" for word in sorted(words)]
    return re.compile(rf"(?<![\w.])(?:{'|'.join(names)})(?!\w)" if names else r"(?!)")


def _shared_name(names: list[str]) -> str:
    """Return names of one pattern as one: `a1.b1`, `a1.b2`, ... as `a1–2.b1–2` if every combination is there."""
    words = re.split(r"\d+", names[0])
    numbers = [map(int, re.findall(r"\d+", name)) for name in names]
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if math.prod(map(len, columns)) != len(names):
        return f"{names[0]} … {names[-1]}"
    ranges = [*map(_range, columns), ""]
    return "".join(word + numbers for word, numbers in zip(words, ranges, strict=True))


def _range(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ",".join(map(str, numbers))
