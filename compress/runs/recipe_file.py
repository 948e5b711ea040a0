"""Read a recipe file against its schema and report every problem at once, each with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, create_model

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.forms import REFUSED, plain
from compress.core.problems import in_full, is_section, show, takes_anything, understood
from compress.core.sections import or_name
from compress.core.yaml_lines import Document, Path_, Unquoted, dotted, elsewhere, leaves, parse, parse_scalar

T = TypeVar("T", bound=BaseModel)
Finding = tuple[Path_, str]
Flags = str | Mapping[str, str]
"""What overrides were given by: one flag for all, or that of each dotted key, `--set` of those that are not there; an
empty one for what no flag said."""


@dataclass
class Draft(Generic[T]):
    """A recipe on its way to being valid: what was written, where, and what is wrong with it."""

    file: str
    schema: type[T]
    document: Document
    overridden: dict[Path_, str]
    value: T | None = None

    def place(self, path: Path_) -> str:
        """Return `file:line`, or the flag that set the key at `path`."""
        for length in range(len(path), 0, -1):
            if flag := self.overridden.get(path[:length]):
                return flag
        if path not in self.document.lines and (flag := self._set_below(path)):
            return flag
        return f"{self.file}:{self.document.line(path) or 1}" if self.document.lines else self.file

    def _set_below(self, path: Path_) -> str | None:
        """Return the flag that made the section at `path` by setting a key inside it."""
        return next((flag for key, flag in self.overridden.items() if key[: len(path)] == path), None)

    def report(self, findings: Iterable[Finding]) -> list[str]:
        """Return one line per finding, as the user reads it."""
        return [f"{self.place(path)}  {dotted(path)}: {text}" for path, text in findings]

    def located(self, problem: str) -> str:
        """Return a sentence that begins with a dotted key, `model.name: ...`, with the key's place before it."""
        match = re.match(r"([a-z_]\w*(?:\.\w+)*): ", problem)
        if match is None or match[1].split(".")[0] not in self.schema.model_fields:
            return problem
        path = tuple(int(part) if part.isdigit() else part for part in match[1].split("."))
        return f"{self.place(path)}  {problem}"

    def sections(self, broken: set[str]) -> dict[str, Any]:
        """Return the validated top-level sections outside `broken`, absent ones as their default."""
        good = {}
        for name, info in self.schema.model_fields.items():
            if name not in self.document.values and not info.is_required():
                good[name] = info.get_default()
            elif name in self.document.values and name not in broken:
                good[name] = _adapter(self.schema, name).validate_json(
                    _to_json(self.document.values[name]), strict=True
                )
        return good


@lru_cache(maxsize=256)
def _adapter(schema: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """Return what validates one section; pydantic takes milliseconds to make it."""
    return TypeAdapter(schema.model_fields[name].rebuild_annotation())


def read(
    file: Path | Mapping[str, Any],
    schema: type[T],
    overrides: Mapping[str, Any] | None = None,
    checks: Callable[[dict[str, Any]], Iterable[Finding]] = lambda sections: (),
    flag: Flags = "--set",
) -> Draft[T]:
    """Return the recipe in `file` with `overrides` (dotted key -> value) applied; `value` is a `schema`.

    In place of a file there may be what one holds, as a mapping. Its values and those of `overrides` may be Python's.
    `checks` gets the sections that are valid by themselves and yields further findings; `flag` says what each override
    was given by. Raises `InputError` with
    every problem, one line each: `file:line  dotted.key: what is wrong; got ...; allowed ...; did you mean ...`.
    """
    if isinstance(file, Mapping):
        try:
            return resolve(Document(plain(file)), "recipe", schema, overrides or {}, checks, flag)
        except RecursionError as error:
            raise InputError("recipe  nested too deeply") from error
    document = parse(read_text(file))
    return resolve(document, str(file), schema, overrides or {}, checks, flag)


def resolve(
    document: Document,
    file: str,
    schema: type[T],
    overrides: Mapping[str, Any],
    checks: Callable[[dict[str, Any]], Iterable[Finding]],
    flags: Flags,
) -> Draft[T]:
    """Validate an already parsed `document`, or one of Python's values without lines; see `read`."""
    if not isinstance(document.values, dict):
        raise InputError(*_text_problems(document, file), *_not_a_mapping(document, file))
    draft = Draft(file, schema, document, {})
    problems = _text_problems(document, file)
    for key, value in overrides.items():
        flag = flags if isinstance(flags, str) else flags.get(key, "--set")
        try:
            problems += _override(draft, key, plain(value, key), flag)
        except InputError as error:
            problems += [f"{flag}  {problem}" for problem in error.problems]
    draft.value, findings = _validate(draft)
    findings = findings or [*_nothing_said(draft), *_words_of_elsewhere(draft)]
    broken = {str(path[0]) if path else "" for path, _ in findings}
    findings += checks(draft.sections(broken))
    problems += draft.report(findings)
    if problems:
        raise InputError(*problems)
    return draft


def section(name: str, schema: type[T], overrides: Mapping[str, Any], flag: str = "--set") -> T:
    """Return the section `name` with its defaults and `overrides` whose keys begin with `name.`.

    Raises `InputError` with every problem, overrides of other sections included.
    """
    whole = create_model("Section", __base__=Config, **{name: (schema, ...)})  # type: ignore[call-overload]
    draft = resolve(Document(values={name: {}}), name, whole, overrides, lambda sections: (), flag)
    return cast(T, getattr(draft.value, name))


def split_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Return `["a.b=1"]` as `{"a.b": 1}`; the value is YAML. Raises `InputError` naming what cannot be read."""
    result: dict[str, Any] = {}
    problems = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set  {pair}: not of the form dotted.key=value")
            continue
        try:
            result.pop(key.strip(), None)  # the last one counts, in its place among the others
            result[key.strip()] = parse_scalar(text)
        except ValueError as error:
            problems.append(f"--set  {key}: the value is no YAML; got {text!r}: {error}")
    if problems:
        raise InputError(*problems)
    return result


def read_text(file: Path) -> str:
    """Return what a recipe says, comments and all; raises InputError for a file that is no text."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}:1  is not a text file in UTF-8") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error


def _text_problems(document: Document, file: str) -> list[str]:
    return [f"{file}:{p.line or 1}  {p.key + ': ' if p.key else ''}{p.text}" for p in document.problems]


def _not_a_mapping(document: Document, file: str) -> list[str]:
    if document.problems:
        return []
    if document.values is None:
        return [f"{file}:1  the recipe is empty; allowed is a mapping that begins with version: 1"]
    return [f"{file}:1  a recipe is a mapping of keys; got {show(document.values)}"]


def _override(draft: Draft[T], key: str, value: Any, flag: str) -> list[str]:
    """Put `value` at the dotted `key` of the draft; return what is wrong with the key itself."""
    current: Any = draft.document.values
    path: list[str | int] = []
    parts = re.sub(r"\[(\d+)\]", r".\1", str(key)).split(".")  # prune[1] is prune.1
    for position, part in enumerate(parts):
        if isinstance(current, list) and not part.isdigit() and len(current) == 1:
            path.append(0)  # `prune.sparsity` reaches the only entry of a list
            current = current[0]
        if isinstance(current, str):  # `model: resnet18` with model.pretrained
            current = _in_full(draft, tuple(path), current)
        step: str | int = int(part) if isinstance(current, list) and part.isdigit() else part
        reason = _cannot_step(current, step, dotted(tuple(path)))
        if reason:
            return [f"{flag}  {key}: {reason}"]
        path.append(step)
        if position == len(parts) - 1:
            current[step] = value
        else:
            if isinstance(current, dict) and current.get(part) is None:
                current[part] = {}
            current = current[step]
    lost = next((dotted(other) for other in draft.overridden if other[: len(path)] == tuple(path)), None)
    draft.overridden[tuple(path)] = flag
    if lost and value is not None:  # null leaves the section out, whatever was to be in it
        return [f"{flag}  {key}: takes the place of {lost}, which is set before; set {key} first"]
    return []


def _in_full(draft: Draft[T], path: Path_, text: str) -> Any:
    """Return the section that `text` stands for at `path` of the draft, and put it there; the text where it is none."""
    full = or_name(draft.schema, path)
    section = in_full(draft.schema, path, draft.document.values) if full is None else full(text)
    if section is REFUSED:
        return text
    around: Any = draft.document.values
    for part in path[:-1]:
        around = around[part]
    around[path[-1]] = section
    return section


def _cannot_step(current: Any, step: str | int, where: str) -> str:
    if isinstance(current, list):
        if isinstance(step, int) and step < len(current):
            return ""
        allowed = f"; allowed {where}.0 to {where}.{len(current) - 1}" if current else ""
        return f"{where} has {len(current)} entries{allowed}"
    if isinstance(current, dict):
        return "" if step else "a part of the key is empty"
    return f"{where} is no section; got {show(current)}"


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=True)


def _validate(draft: Draft[T]) -> tuple[T | None, list[Finding]]:
    """Validate strictly: JSON mode takes a list for a tuple; texts are taken for numbers where that is beyond doubt."""

    def strictly(values: Any) -> T:
        return draft.schema.model_validate_json(_to_json(values), strict=True)

    document = draft.document
    try:
        value, document.values, findings = understood(strictly, draft.schema, document.values, document.line)
    except RecursionError as error:
        raise InputError(f"{draft.file}:1  nested too deeply") from error
    return value, findings


def _nothing_said(draft: Draft[T]) -> Iterator[Finding]:
    """Yield the sections with nothing behind the colon, of which nobody can tell whether all or nothing is meant."""
    nothing = {path for path, value in leaves(draft.document.values) if value is None}
    for path in sorted(draft.document.empty & nothing - draft.overridden.keys(), key=draft.document.lines.__getitem__):
        if is_section(draft.schema, path, draft.document.values):
            yield path, "nothing is said; allowed a section of keys, {} for one with its defaults, null for none"


def _words_of_elsewhere(draft: Draft[T]) -> Iterator[Finding]:
    """Yield words without quotes that are text here and something else to readers of YAML 1.1 or Python.

    Only where any value is handed on as it is, as to a constructor: elsewhere the key says what it takes.
    """
    for path, value in leaves(draft.document.values):
        meant = elsewhere(value) if isinstance(value, Unquoted) else None
        if meant and takes_anything(draft.schema, path, draft.document.values):
            yield path, f'a text here, {meant} elsewhere; got {value}; allowed {meant}, or "{value}" for the text'
