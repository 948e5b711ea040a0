"""Other ways of writing a value that mean the same beyond doubt: numbers in quotes, 50 %, 4 ms, one entry for a list.

Values are looked at here only once they have been refused as they stand, so that nothing which a key takes is changed.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from compress.core.errors import InputError
from compress.core.yaml_lines import written

SECTION = ("model_type", "model_attributes_type", "dict_type")
"""What pydantic calls it where a section of keys is none."""
REFUSED: Any = object()
"""What `other_form` returns for a value that has no other form."""

_WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_DIGITS = {"0x": 16, "0o": 8, "0b": 2}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_QUOTIENT = re.compile(r"([0-9.]+)\s*/\s*([0-9.]+)")
_WITH_UNIT = re.compile(r"([-+0-9.eE]*[0-9.])\s*([a-zµ%]+)", re.IGNORECASE)
_LISTED = {"integer": re.compile(r"\s*[x×,]\s*"), "number": re.compile(r"\s*,\s*")}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MICROSECONDS = {
    **dict.fromkeys(("us", "µs"), 1),
    "ms": 1_000,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000_000),
}
_KEYS_IN = ("ms", "seconds", "minutes", "hours")  # last word of a key that says its unit of time
_LARGEST = 2**53  # above it floats are no longer every whole number


def plain(value: Any, key: str = "") -> Any:
    """Return a value of Python's as a recipe has it: numbers, texts, null, lists and mappings of such.

    Arrays and tensors become numbers or lists, paths texts, members of an enumeration their values. Raises InputError,
    naming the dotted `key`, for anything else.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value, key)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(name): plain(each, f"{key}.{name}" if key else str(name)) for name, each in value.items()}
    if isinstance(value, list | tuple | range | set | frozenset):
        ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(each, f"{key}.{place}") for place, each in enumerate(ordered)]
    if hasattr(value, "tolist"):  # of NumPy, of torch
        return plain(value.tolist(), key)
    got = type(value).__name__
    raise InputError(f"{key}: no value of a recipe; got {got}; allowed numbers, texts, lists, mappings")


def other_form(value: Any, kind: str, key: str, node: dict[str, Any], choices: Sequence[Any]) -> Any:
    """Return what `value` stands for at `key`, or `REFUSED`.

    Args:
        value: as it was written.
        kind: what pydantic calls the problem, such as `int_type`.
        key: the last part of the key; one like `latency_ms` says the unit of its value.
        node: the part of the JSON schema that describes the key.
        choices: where the key takes one of several words.
    """
    name, _, what = kind.partition("_")
    if kind in ("literal_error", "union_tag_invalid"):
        return _choice(value, choices)
    if name == "int" and what in ("type", "parsing", "from_float"):
        return _whole(value)
    if name == "float" and what in ("type", "parsing"):
        return _number(value, key, node)
    if name == "bool" and what in ("type", "parsing"):
        return _TRUTH.get(value.strip().lower(), REFUSED) if isinstance(value, str) else REFUSED
    if kind == "string_type" and _is_number(value):
        return written(value)
    if kind in SECTION:
        return _named(value, node.get("discriminator", {}))
    if kind in ("list_type", "tuple_type"):
        return _entries(value, node.get("items"), kind)
    return REFUSED


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    """Return the choice that is written like `value` but for capitals, dashes and quotes."""
    if not (isinstance(value, str) or _is_number(value)):
        return REFUSED
    found = [choice for choice in choices if _plainly(choice) == _plainly(written(value))]
    return found[0] if len(found) == 1 else REFUSED


def standing_alone(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """Return the names that may stand for whole sections at a key, those whose sections ask for nothing more.

    Args:
        node: the part of the JSON schema that describes the key.
        definitions: what references in the schema lead to.
    """
    choice = node.get("discriminator", {})
    key, sections = choice.get("propertyName"), choice.get("mapping", {})
    needed = {name: definitions[ref.rsplit("/", 1)[1]].get("required", ()) for name, ref in sections.items()}
    return [name for name, keys in needed.items() if key is not None and set(keys) <= {key}]


def _named(value: Any, discriminator: Mapping[str, Any]) -> Any:
    """Return a section that is named alone, such as `kd` for {loss: kd}."""
    key, names = discriminator.get("propertyName"), list(discriminator.get("mapping", ()))
    name = _choice(value, names) if isinstance(value, str) else REFUSED
    return REFUSED if key is None or name is REFUSED else {key: name}


def _plainly(word: Any) -> str:
    return str(word).strip().casefold().replace("-", "_").replace(" ", "_")


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        text = value.strip()
        if _WHOLE.fullmatch(text):
            return int(text)
        if text[:2].lower() in _DIGITS:
            try:
                return int(text, _DIGITS[text[:2].lower()])
            except ValueError:
                return REFUSED
        value = float(text) if _FLOAT.fullmatch(text) else REFUSED
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST
    return int(value) if whole else REFUSED


def _number(value: Any, key: str, node: dict[str, Any]) -> Any:
    if not isinstance(value, str):
        return REFUSED
    text = value.strip()
    if _FLOAT.fullmatch(text):
        return float(text)
    try:
        if quotient := _QUOTIENT.fullmatch(text):
            return float(quotient[1]) / float(quotient[2])
        found = _WITH_UNIT.fullmatch(text)
        number, unit = (float(found[1]), found[2].lower()) if found else (0.0, "")
    except (ValueError, ZeroDivisionError):
        return REFUSED
    if unit == "%":  # of a share; other numbers may be percentages themselves, as accuracies are
        share = min(node.get("maximum", 2), node.get("exclusiveMaximum", 2)) <= 1
        return number / 100 if share else REFUSED
    own = key.rpartition("_")[2]
    timed = own in _KEYS_IN and unit in _MICROSECONDS
    return number * _MICROSECONDS[unit] / _MICROSECONDS[own] if timed else REFUSED


def _entries(value: Any, item: Any, kind: str) -> Any:
    """Return one entry as a list of it, and sizes such as 3x224x224 as numbers."""
    of = item.get("type") if isinstance(item, dict) else None
    if isinstance(value, str) and of == "string":
        return REFUSED if "," in value else [value]
    if isinstance(value, str) and of in _LISTED:
        numbers = [_FLOAT.fullmatch(each) for each in _LISTED[of].split(value.strip(" ([,])"))]
        several = len(numbers) > 1 or value[:1] in ("(", "[")
        return [float(each[0]) for each in numbers if each] if several and all(numbers) else REFUSED
    # a tuple is one value of several numbers: what 224 alone is of an input size is not beyond doubt
    return [value] if kind == "list_type" and of in _LISTED and _is_number(value) else REFUSED
