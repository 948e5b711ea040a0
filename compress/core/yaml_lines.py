"""YAML with line numbers: values, the line of every key, and all problems of the text itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Path_ = tuple[str | int, ...]
MAX_NODES = 20_000  # a recipe has dozens; aliases of aliases could unfold to billions


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place: `line` counts from 1, `key` is the dotted path, `text` one sentence."""

    line: int | None
    key: str
    text: str


@dataclass
class Document:
    """A parsed recipe: plain values, the line each key stands on, and what is wrong with the text."""

    values: Any = None
    lines: dict[Path_, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    empty: set[Path_] = field(default_factory=set)
    """Keys with nothing behind the colon, which reads as null."""
    rest: str = ""
    """What stands behind the last value."""
    nodes: int = 0
    """How many values have been walked through, those behind aliases each time."""

    def line(self, path: Path_) -> int | None:
        """Return the line of `path`, or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


class WrittenInt(int):
    """A whole number that remembers how it was written: a run called 007 is not called 7."""

    text: str


class WrittenFloat(float):
    """A number that remembers how it was written: a version 1.10 is not 1.1."""

    text: str


class Unquoted(str):
    """A text without quotes, which readers of other versions of YAML may take for something else."""


_ELSEWHERE = {"yes": "true", "on": "true", "no": "false", "off": "false", "None": "null"}
_NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)+|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)")


def elsewhere(text: str) -> str | None:
    """Return what a text without quotes is to readers of YAML 1.1 or Python; None where it is a text to them, too."""
    if _NUMBER.fullmatch(text):
        return str(int(text, 0))
    same = text in (text.lower(), text.upper(), text.capitalize())
    return _ELSEWHERE.get(text) or (_ELSEWHERE.get(text.lower()) if same else None)


def written(value: Any) -> str:
    """Return a number or a text as it was written."""
    return str(getattr(value, "text", value))


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2: `1e-3` is a number, `no` and `1:30` are text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    number = WrittenInt(node.value)
    number.text = node.value
    return number


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    number = WrittenFloat(re.sub(r"\.(?=inf|nan)", "", node.value.lower()))
    if math.isinf(number) and "inf" not in node.value.lower():
        raise ValueError("too large a number")
    number.text = node.value
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def dotted(path: Path_) -> str:
    """Return `path` as the dotted key users write, such as `prune.0.sparsity`."""
    return ".".join(str(part) for part in path)


def leaves(values: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Yield every value that is neither a list nor a mapping, with its path."""
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if inside is None:
        yield path, values
    for key, value in inside or ():
        yield from leaves(value, (*path, key))


def parse_scalar(text: str) -> Any:
    """Return the value of a piece of YAML, as of `--set key=value`; raises `ValueError` with what is wrong."""
    document = parse(text)
    if document.problems:
        problem = document.problems[0]
        raise ValueError(f"{problem.key}: {problem.text}" if problem.key else problem.text)
    if document.rest.lstrip().startswith("#"):
        raise ValueError("a # behind a space begins a comment; allowed is a value in quotes")
    return document.values


def parse(text: str) -> Document:
    """Parse `text`; problems are collected in the result, never raised."""
    document = Document()
    try:
        node = yaml.compose(text, _Loader)
        document.values = None if node is None else _walk(node, (), document, frozenset())
        document.rest = text if node is None else text[node.end_mark.index :]
    except yaml.MarkedYAMLError as error:
        document.problems.append(_syntax_problem(error, text))
        return document
    except yaml.YAMLError as error:
        document.problems.append(Problem(1, "", f"is not YAML text: {str(error).splitlines()[0]}"))
        return document
    return document


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    source = text.splitlines()
    before = source[mark.line][: mark.column + 1] if mark and mark.line < len(source) else ""
    if "\t" in before:
        where = "in the indentation" if before.strip() in ("", "-") else "between a value and what follows"
        return Problem(line, "", f"a tab {where}; allowed are spaces")
    if "but found another document" in str(error):
        return Problem(line, "", "a second document begins here; allowed is one")
    what = (error.problem or error.context or "cannot be read").replace("'<block end>'", "the end of the section")
    return Problem(line, "", f"is not valid YAML: {what}")


def _walk(node: yaml.Node, path: Path_, document: Document, open_nodes: frozenset[int]) -> Any:
    """Turn `node` into plain values, noting the lines and problems below it."""
    document.lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in open_nodes:
        document.problems.append(Problem(node.start_mark.line + 1, dotted(path), "an alias that contains itself"))
        return None
    document.nodes += 1
    if document.nodes > MAX_NODES:
        raise yaml.YAMLError(f"more than {MAX_NODES} values")
    inside = open_nodes | {id(node)}
    if isinstance(node, yaml.MappingNode):
        return _walk_mapping(node, path, document, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_walk(item, (*path, index), document, inside) for index, item in enumerate(node.value)]
    if node.tag.endswith(":null") and not node.value:
        document.empty.add(path)
    loader = _Loader("")
    try:
        value = loader.construct_object(node, deep=True)
        return Unquoted(value) if isinstance(value, str) and getattr(node, "style", None) is None else value
    except (yaml.YAMLError, ValueError):
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        problem = f"a tag or value that recipes do not take; got {tag} {str(node.value)[:40]!r}"
        document.problems.append(Problem(node.start_mark.line + 1, dotted(path), problem))
        return None
    finally:
        loader.dispose()


def _walk_mapping(node: yaml.MappingNode, path: Path_, document: Document, inside: frozenset[int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(line, dotted(path), "a key that is not text"))
            continue
        key = str(key_node.value)
        if key == "<<" and key_node.style is None:
            merged = {**_merged(value_node, path, document, inside), **merged}
            continue
        if key in values:
            first = document.lines[(*path, key)]
            text = f"the key stands twice; the first is on line {first}"
            document.problems.append(Problem(line, dotted((*path, key)), text))
            continue
        if node.flow_style and value_node.end_mark.index == key_node.end_mark.index:
            text = f"{key!r} is no key with a value; allowed between {{}} is key: value, a list stands between []"
            document.problems.append(Problem(line, dotted(path), text))
            continue
        document.lines[(*path, key)] = line
        values[key] = _walk(value_node, (*path, key), document, inside)
    return {**merged, **values}


def _merged(node: yaml.Node, path: Path_, document: Document, inside: frozenset[int]) -> dict[str, Any]:
    """Return the keys that a merge key (`<<: *name`, or a list of such) brings in; the first of a list wins."""
    result: dict[str, Any] = {}
    for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(each, yaml.MappingNode):
            result = {**_walk(each, path, document, inside), **result}
        else:
            line = node.start_mark.line + 1
            text = "<<: merges sections; allowed *name or a list of such"
            document.problems.append(Problem(line, dotted(path), text))
    return result
