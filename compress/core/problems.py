"""Pydantic's findings as sentences: what is wrong; got; allowed; did you mean."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compress.core.errors import InputError, did_you_mean
from compress.core.forms import REFUSED, SECTION, other_form, standing_alone
from compress.core.yaml_lines import Path_, dotted

M = TypeVar("M", bound=BaseModel)

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of keys",
    "model": "a section of keys",
    "model_attributes": "a section of keys",
    "none": "null",
    "finite_number": "a finite number",
}
_LIMITS = {
    "exclusiveMinimum": "above {}",
    "minimum": "at least {}",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "minProperties": "at least {} keys",
    "maxProperties": "at most {} keys",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
}


_SAYS = {"type", "enum", "const", "anyOf", "oneOf", "discriminator"}  # what a JSON schema says of a value
_READINGS = 3  # a text of one number stands for a list of it: two forms
_RANGES = ("greater", "less", "too_", "string_too")


def under(prefix: str) -> Callable[[str, str], str]:
    """Return what writes a problem of a key as `prefix key: what is wrong`, of the whole without a key."""
    return lambda key, text: f"{prefix}{key}: {text}" if key else f"{prefix}{text}"


def validated(schema: type[M], values: Any, say: Callable[[str, str], str] | None = None) -> M:
    """Return `values`, which may come from Python or JSON, as a `schema`.

    Raises `InputError` with every problem, each as `say(dotted key, what is wrong)` or else as `key: what is wrong`;
    the key of the whole is empty.
    """
    say = say or under("")
    found, _, problems = understood(schema.model_validate, schema, values)
    if found is None:
        raise InputError(*(say(dotted(path), text) for path, text in problems))
    return found


def understood(
    validate: Callable[[Any], M], schema: type[M], values: Any, line: Callable[[Path_], int | None] = lambda path: None
) -> tuple[M | None, Any, list[tuple[Path_, str]]]:
    """Return what `validate` makes of `values` (None where it refuses them), the values, and what is wrong.

    What is refused is tried in another form that means the same (`compress.core.forms`), such as the number of `"30"`,
    which the values that are returned have in its place. What is wrong with these is as `explain` has it.
    """
    for last in (*(False,) * _READINGS, True):
        try:
            return validate(values), values, []
        except ValidationError as error:
            forms = {} if last else _other_forms(error, schema, values)
            if not forms:
                return None, values, explain(error, schema, values, line)
        for path, form in forms.items():
            values = _with(values, path, form)
    raise AssertionError("the last reading returns")


def _other_forms(error: ValidationError, schema: type[BaseModel], values: Any) -> dict[Path_, Any]:
    """Return another form of each value that was refused and has one."""
    found: dict[Path_, Any] = {}
    for detail in _nearest_alternatives(error.errors(), values):
        path = _place(detail, values)
        value = _value_at(values, path)
        if not path or path in found or value is None:
            continue
        node = _node_at(_schema_of(schema), path, values)
        tags = str(detail.get("ctx", {}).get("expected_tags", ""))
        choices = _choices(node) or [tag.strip(" '") for tag in tags.split(",") if tag]
        form = other_form(value, detail["type"], str(path[-1]), node, choices)
        if form is not REFUSED:
            found[path] = form
    return found


def _with(values: Any, path: Path_, value: Any) -> Any:
    """Return `values` with another one at `path`."""
    if not path:
        return value
    inside = _with(values[path[0]], path[1:], value)
    if isinstance(values, Mapping):
        return {**values, path[0]: inside}
    return [inside if place == path[0] else each for place, each in enumerate(values)]


def explain(
    error: ValidationError, schema: type[BaseModel], values: Any, line: Callable[[Path_], int | None]
) -> list[tuple[Path_, str]]:
    """Return (path, sentence) for every finding, at most one per path: root causes first, then by `line`."""
    tree = _schema_of(schema)
    found: dict[Path_, list[ErrorDetails]] = {}
    for detail in _nearest_alternatives(error.errors(), values):
        found.setdefault(_place(detail, values), []).append(detail)
    unknown = {path for path, details in found.items() if details[0]["type"] == "extra_forbidden"}
    result = []
    for path in sorted(found, key=lambda path: (_rank(path, found[path][0]), line(path) or 0)):
        details = found[path]
        if details[0]["type"] == "missing" and _meant_by(path, unknown):
            continue
        result.append((path, _sentence(path, details, tree, values)))
    return result


@functools.cache
def _schema_of(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()


def _nearest_alternatives(details: list[ErrorDetails], values: Any) -> list[ErrorDetails]:
    """Return `details` without those of alternatives that a section was not meant as.

    Where a key takes one of several kinds of section, pydantic tells what is wrong for each kind; of interest is the
    kind whose keys are there.
    """
    distances: dict[Path_, dict[str | int, int]] = {}
    places = []
    for detail in details:
        current, path, place = values, [], None
        for index, part in enumerate(detail["loc"]):
            last = index == len(detail["loc"]) - 1
            if isinstance(current, dict) and (part in current or (last and detail["type"] == "missing")):
                current = current.get(part)
                path.append(part)
            elif isinstance(current, list) and isinstance(part, int) and part < len(current):
                current = current[part]
                path.append(part)
            elif isinstance(current, dict) and place is None:
                place = (tuple(path), part)
                distance = 2 if last else int(detail["type"] in ("missing", "extra_forbidden"))
                kinds = distances.setdefault(place[0], {})
                kinds[part] = max(distance, kinds.get(part, 0))
        places.append(place)
    return [
        detail
        for detail, place in zip(details, places, strict=True)
        if place is None or distances[place[0]][place[1]] == min(distances[place[0]].values())
    ]


def _rank(path: Path_, detail: ErrorDetails) -> int:
    """A foreign version comes first, then misspelt keys and tags, since they cause the missing ones."""
    if path == ("version",):
        return -1
    return {"extra_forbidden": 0, "union_tag_invalid": 0, "missing": 2, "union_tag_not_found": 2}.get(detail["type"], 1)


def _meant_by(path: Path_, unknown: set[Path_]) -> bool:
    """Return whether an unknown key beside the missing `path` is probably a misspelling of it."""
    return any(other[:-1] == path[:-1] and did_you_mean(str(other[-1]), [str(path[-1])]) for other in unknown)


def _place(detail: ErrorDetails, values: Any) -> Path_:
    """Return the path in the user's own terms: pydantic's location without union tags and type names."""
    path: list[str | int] = []
    current = values
    for index, part in enumerate(detail["loc"]):
        if isinstance(current, dict) and part in current:
            current = current[part]
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            current = current[part]
        elif not (index == len(detail["loc"]) - 1 and (detail["type"] == "missing" or _is_default(detail, current))):
            continue
        path.append(part)
    if detail["type"].startswith("union_tag"):
        tag = str(detail["ctx"]["discriminator"]).strip("'")
        if tag.isidentifier():
            path.append(tag)
    return tuple(path)


def _is_default(detail: ErrorDetails, section: Any) -> bool:
    """Return whether a validator refused the default of a key that the user left out of `section`."""
    whole = isinstance(detail["input"], dict)  # a validator of the section itself; the last part is a kind of section
    return detail["type"] == "value_error" and isinstance(section, dict) and not whole


def _sentence(path: Path_, details: list[ErrorDetails], tree: dict[str, Any], values: Any) -> str:
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    got = "" if kind in ("missing", "union_tag_not_found") else f"; got {show(_value_at(values, path))}"
    node = _node_at(tree, path, values)
    if kind == "extra_forbidden":
        keys = sorted(_node_at(tree, path[:-1], values).get("properties", {}))
        return f"unknown key; allowed {', '.join(keys) or 'none'}{did_you_mean(str(path[-1]), keys)}"
    if kind == "missing":
        description = node.get("description")
        return "required, but missing" + (f": {description}" if description else "")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        expected = context.get("expected_tags") or _tags_at(tree, path, values)
        what = "required, but missing" if kind == "union_tag_not_found" else "unknown value"
        choices = [tag.strip(" '") for tag in str(expected).split(",")]
        return f"{what}{got}; allowed {', '.join(choices)}{did_you_mean(str(context.get('tag', '')), choices)}"
    named = standing_alone(node, tree.get("$defs", {})) if any(each["type"] in SECTION for each in details) else []
    if named and isinstance(word := _value_at(values, path), str):
        return f"unknown value{got}; allowed {', '.join(named)} or a section of keys{did_you_mean(word, named)}"
    wanted = list(dict.fromkeys(_KINDS[name] for item in details if (name := _type_name(item["type"])) in _KINDS))
    literal = next((item for item in details if item["type"] == "literal_error"), None)
    if literal is not None:
        choices = [str(choice) for choice in _choices(node)]
        ranges = [item["msg"].removeprefix("Input should be ") for item in details if item["type"].startswith(_RANGES)]
        allowed = " or ".join([", ".join(choices) or str(literal["ctx"]["expected"]), *wanted, *ranges])
        return f"unknown value{got}; allowed {allowed}{did_you_mean(str(_value_at(values, path)), choices)}"
    if kind == "string_pattern_mismatch":
        return f"does not fit{got}; allowed {node.get('description', context.get('pattern'))}"
    if kind == "value_error":
        value = _value_at(values, path)
        return _with_got(str(context["error"]), detail["input"] if value is None else value)
    limits = _limits(node)
    if kind.startswith(_RANGES) or (kind == "finite_number" and limits):
        return f"out of range{got}; allowed {limits or detail['msg'].removeprefix('Input should be ')}"
    if wanted:
        allowed = " or ".join(wanted) + (f", {limits}" if limits else "")
        if _KINDS["model"] in wanted and isinstance(_value_at(values, path), bool):
            allowed += " ({} for its defaults), or null to leave it out"
        return f"wrong type{got}; allowed {allowed}"
    return detail["msg"][:1].lower() + detail["msg"][1:] + got


def _with_got(message: str, value: Any) -> str:
    """Return a validator's own sentence, with the value before what is allowed unless it names the value itself."""
    if isinstance(value, dict) or (value != "" and str(value) in message) or "got" in message.split():
        return message
    what, semicolon, rest = message.partition("; allowed")
    return f"{what}; got {show(value)}{semicolon}{rest}"


def _type_name(kind: str) -> str:
    for ending in ("_type", "_parsing", "_from_float", "_required"):
        kind = kind.removesuffix(ending)
    return kind


def show(value: Any) -> str:
    """Return `value` as a user would write it, cut to a short piece."""
    if isinstance(value, dict):
        return "a section" if len(json.dumps(value, default=str)) > 40 else json.dumps(value, default=str)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _value_at(values: Any, path: Path_) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _resolve(node: dict[str, Any], tree: dict[str, Any], value: Any) -> dict[str, Any]:
    """Follow references, null alternatives and discriminators until `node` describes `value`."""
    while True:
        if "$ref" in node:
            node = {**tree["$defs"][node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
        elif (choice := node.get("discriminator", {})).get("mapping") and (tag := _tag(choice, value)) is not None:
            node = {"$ref": choice["mapping"][tag]}
        elif choice.get("mapping") and not choice.get("short"):
            return node
        elif alternatives := [a for a in node.get("anyOf") or node.get("oneOf") or [] if a.get("type") != "null"]:
            rest = {key: text for key, text in node.items() if key not in ("anyOf", "oneOf")}
            nearest: dict[str, Any] = max(alternatives, key=lambda each: _fitness(each, tree, value))
            node = {**rest, **nearest}
        else:
            return node


def _tag(choice: dict[str, Any], value: Any) -> str | None:
    """Return which section of a discriminator `choice` the `value` is; None where it does not say."""
    if not isinstance(value, dict):
        return None
    named = named_by(value, choice["mapping"]) if choice.get("short") else None
    tag = str(value.get(choice["propertyName"], named or choice.get("default")))
    return tag if tag in choice["mapping"] else None


def named_by(section: Iterable[Any], names: Iterable[str]) -> str | None:
    """Return the first of `names` that a key of `section` is called like, or else is a misspelling of."""
    names = list(names)
    misspelt = (name for key in section for name in names if did_you_mean(key, [name]))
    return next((key for key in section if key in names), None) or next(misspelt, None)


def _fitness(alternative: dict[str, Any], tree: dict[str, Any], value: Any) -> tuple[bool, float]:
    """Return how well an alternative of a schema describes `value`: whether it is of its kind, then by its keys."""
    if "$ref" in alternative:
        alternative = tree["$defs"][alternative["$ref"].rsplit("/", 1)[1]]
    if not isinstance(value, dict):
        return (alternative.get("type") == "array") == isinstance(value, list), 0.0
    keys = alternative.get("properties", {})
    if not keys and isinstance(alternative.get("additionalProperties"), dict):  # any names
        return True, 0.25 * all(isinstance(each, dict | list) for each in value.values())
    return "properties" in alternative, sum(
        1.0 if key in keys else 0.5 * bool(did_you_mean(key, keys)) for key in value
    )


def _node_at(tree: dict[str, Any], path: Path_, values: Any) -> dict[str, Any]:
    """Return the part of the JSON schema `tree` that describes the key at `path`."""
    node, current = _resolve(tree, tree, values), values
    for part in path:
        around, current = current, _value_at(current, (part,))
        child = _item(node, part) if isinstance(around, list) else _entry(node, part)
        if (choice := child.get("discriminator", {})).get("beside"):  # of `OptionsOf`
            key = choice["beside"]
            child = {"$ref": choice["mapping"].get(str(around.get(key, node["properties"][key].get("default"))))}
        node = _resolve(child, tree, current)
    return node


def in_full(schema: type[BaseModel], path: Path_, values: Any) -> Any:
    """Return the section that the text at `path` of `values` stands for, or `REFUSED`."""
    node = _node_at(_schema_of(schema), path, values)
    return other_form(_value_at(values, path), SECTION[0], str(path[-1]), node, ())


def is_section(schema: type[BaseModel], path: Path_, values: Any) -> bool:
    """Return whether the key at `path` of `values` takes a section of keys."""
    node = _node_at(_schema_of(schema), path, values)
    return node.get("type") == "object" or "discriminator" in node


def takes_anything(schema: type[BaseModel], path: Path_, values: Any) -> bool:
    """Return whether the key at `path` of `values` hands on whatever it is given, as to a constructor."""
    return not _SAYS & _node_at(_schema_of(schema), path, values).keys()


def _entry(node: dict[str, Any], key: str | int) -> dict[str, Any]:
    """Return what describes a key: a section's own, or what all values of a mapping are."""
    named: dict[str, Any] | None = node.get("properties", {}).get(key)
    if named is not None:
        return named
    values = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
    return next((value for value in values if isinstance(value, dict)), {})


def _item(node: dict[str, Any], place: str | int) -> dict[str, Any]:
    """Return what describes an entry of a list, whose first entries may each be of a kind of their own."""
    first = node.get("prefixItems", [])
    item: Any = first[place] if isinstance(place, int) and place < len(first) else node.get("items", {})
    return item if isinstance(item, dict) else {}


def _tags_at(tree: dict[str, Any], path: Path_, values: Any) -> str:
    node = _node_at(tree, path[:-1], values)
    return ", ".join(node.get("discriminator", {}).get("mapping", {}))


def _choices(node: dict[str, Any]) -> list[Any]:
    return list(node.get("enum") or ([node["const"]] if "const" in node else []))


def _number(limit: float) -> float:
    """Return a whole limit without a decimal point, which versions of pydantic add and leave out."""
    return int(limit) if math.isfinite(limit) and limit == int(limit) else limit


def _limits(node: dict[str, Any]) -> str:
    limits = " and ".join(text.format(_number(node[key])) for key, text in _LIMITS.items() if key in node)
    return re.sub(r"\bat least 1 (entries|characters|keys)", "not empty", limits)
