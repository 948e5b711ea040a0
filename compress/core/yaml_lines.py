"""YAML with line numbers: values, the line of every key, and all problems of the text itself."""

from __future__ import annotations

import re
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

    def line(self, path: Path_) -> int | None:
        """Return the line of `path`, or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


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
    return int(node.value)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", node.value.lower()))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def dotted(path: Path_) -> str:
    """Return `path` as the dotted key users write, such as `prune.0.sparsity`."""
    return ".".join(str(part) for part in path)


def parse_scalar(text: str) -> Any:
    """Return the value of a piece of YAML (for `--set key=value`); raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


def parse(text: str) -> Document:
    """Parse `text`; problems are collected in the result, never raised."""
    document = Document()
    try:
        node = yaml.compose(text, _Loader)
        document.values = None if node is None else _walk(node, (), document, frozenset())
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
    if mark and mark.line < len(source) and "\t" in source[mark.line][: mark.column + 1]:
        return Problem(line, "", "a tab in the indentation; allowed are spaces")
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
    if len(document.lines) > MAX_NODES:
        raise yaml.YAMLError(f"more than {MAX_NODES} values")
    inside = open_nodes | {id(node)}
    if isinstance(node, yaml.MappingNode):
        return _walk_mapping(node, path, document, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_walk(item, (*path, index), document, inside) for index, item in enumerate(node.value)]
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        problem = f"a tag or value that recipes do not take; got {tag} {str(node.value)[:40]!r}"
        document.problems.append(Problem(node.start_mark.line + 1, dotted(path), problem))
        return None
    finally:
        loader.dispose()


def _walk_mapping(node: yaml.MappingNode, path: Path_, document: Document, inside: frozenset[int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(line, dotted(path), "a key that is not text"))
            continue
        key = str(key_node.value)
        if key in values:
            first = document.lines[(*path, key)]
            text = f"the key stands twice; the first is on line {first}"
            document.problems.append(Problem(line, dotted((*path, key)), text))
            continue
        document.lines[(*path, key)] = line
        values[key] = _walk(value_node, (*path, key), document, inside)
    return values
