"""What a search space or one of its architectures is, for JSON and as text."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from compress.core.formatting import count
from compress.core.text_table import text_table
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice
from spaces.decision_lines import about, group_decisions, show_choices
from spaces.space import Space


def describe_space(space: Space, task: Task) -> dict[str, Any]:
    """Return what `space` offers; `task` is what its networks would be built for."""
    values = space.config.model_dump(mode="json")
    fields = type(space.config).model_fields
    return {
        "space": space.name,
        "about": (inspect.getdoc(type(space)) or "").partition("\n")[0],
        "task": _task(task),
        "options": {name: {"value": values[name], "about": field.description} for name, field in fields.items()},
        "decisions": [
            {"name": each.name, "choices": list(each.choices), "taken": each.when.text if each.when else "always"}
            for each in space.decisions
        ],
        "count": space.count(),
        "presets": {name: {"about": each.about, "options": dict(each.options)} for name, each in space.presets.items()},
    }


def describe_architecture(space: Space, arch: Architecture, task: Task) -> dict[str, Any]:
    """Return what `arch` is: its code, choices, layers and cost for `task`."""
    rows, code = space.layers(arch, task), space.to_code(arch)
    return {
        **space.to_dict(arch),
        "code": None if isinstance(code, Mapping) else code,
        "canonical": dict(space.canonical(arch)),
        "task": _task(task),
        "layers": None if rows is None else [vars(row) for row in rows],
        **space.cost(arch, task),
    }


def show_space(facts: Mapping[str, Any], space: Space) -> str:
    """Return the description of `space` as text; decisions that differ only in their numbers share a line."""
    parts = [f"{facts['space']}: {facts['about']}", _built_for(facts["task"])]
    if facts["options"]:
        options = [(name, _short(each["value"]), each["about"] or "") for name, each in facts["options"].items()]
        parts.append(_left_table(("option", "value", "meaning"), options))
    groups = group_decisions(space.decisions)
    decisions = [(group.full_name, show_choices(group.choices), group.condition or "always") for group in groups]
    parts.append(_left_table(("decision", "choices", "taken"), decisions))
    if facts["presets"]:
        presets = [(name, each["about"]) for name, each in facts["presets"].items()]
        parts.append(_left_table(("preset", "what it is"), presets))
    number = facts["count"]
    parts.append(f"{number} architectures" + (f"  {about(number)}" if number >= 10**6 else ""))
    return "\n\n".join(parts)


def show_architecture(facts: Mapping[str, Any]) -> str:
    """Return the description of an architecture as text."""
    options = "  ".join(f"{name}={_short(value)}" for name, value in facts["options"].items())
    parts = ["  ".join(filter(None, (facts["space"], options))), _built_for(facts["task"])]
    if facts["code"] is not None:
        parts.append(_wrapped(f"code  {facts['code']}"))
    parts.append(_choices(facts["canonical"]))
    if facts["layers"] is not None:
        parts.append(_layers(facts["layers"]))
    params, macs = facts["params"], facts["macs"]
    parts.append(f"params {count(params)} ({params:,})  MACs {count(macs)} ({macs:,})")
    return "\n\n".join(parts)


def _task(task: Task) -> dict[str, int]:
    return {task.counted: task.num_outputs, "channels": task.in_chans, "size": task.img_size}


def _built_for(task: Mapping[str, int]) -> str:
    (counted, number), *_ = task.items()
    return f"built for {number} {counted}, images of {task['channels']} x {task['size']} x {task['size']}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _left_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return text_table(titles, rows, left=len(titles))


def _choices(choices: Mapping[str, Choice]) -> str:
    """Return choices as one paragraph for each first word of their names; one in all where names are single words."""
    if not any("." in name for name in choices):
        return _wrapped("  ".join(f"{name} {choice}" for name, choice in choices.items()))
    lines = []
    for section, names in groupby(choices, key=lambda name: name.partition(".")[0]):
        words = [f"{name.removeprefix(section).removeprefix('.')} {choices[name]}".strip() for name in names]
        lines.append(_wrapped(f"{section}  {'  '.join(words)}"))
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _layers(rows: list[dict[str, Any]]) -> str:
    cells = [
        (each["name"], each["operation"], str(each["out_channels"]), str(each["size"]), str(each["stride"]),
         f"{each['params']:,}", f"{each['macs']:,}")
        for each in rows
    ]  # fmt: skip
    return text_table(("layer", "operation", "channels", "map", "stride", "params", "MACs"), cells, left=2)
