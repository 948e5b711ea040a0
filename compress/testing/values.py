"""Values that a section of a recipe must refuse, made from what its fields declare: types, limits, choices.

Other forms of a value that mean the same beyond doubt (`compress.core.forms`) are not among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

Node = dict[str, Any]
Tags = tuple[tuple[str, Any], ...]

KINDS = (True, 7, -0.5, "é☃\0 \n x", "x" * 5000, [None], {"a": {"b": 1}}, {1: 2})
"""One value, or more, of every kind."""
_TYPES: dict[str, Any] = {"object": Mapping, "array": list | tuple, "string": str, "boolean": bool, "null": type(None)}


class Declared:
    """What a config class declares, read from its JSON schema."""

    def __init__(self, config: type[BaseModel]) -> None:
        self.tree: Node = config.model_json_schema()

    def keys(self) -> Iterator[tuple[str, Node, Tags]]:
        """Yield each dotted key, what it takes, and the keys (such as `kind`) that choose the section it is in."""
        yield from self._below(self.tree, (), ())

    def _below(self, node: Node, path: tuple[str, ...], tags: Tags) -> Iterator[tuple[str, Node, Tags]]:
        node = self._followed(node)
        choice = node.get("discriminator", {})
        for tag, reference in choice.get("mapping", {}).items():
            key = (*path[:-1], choice["beside"]) if "beside" in choice else (*path, choice["propertyName"])
            chosen = (*tags, (".".join(key), tag))
            yield from self._below({"$ref": reference}, path, chosen)
        if not choice.get("mapping"):
            for alternative in node.get("oneOf") or node.get("anyOf") or ():
                yield from self._below(alternative, path, tags)
        for name, child in node.get("properties", {}).items():
            inside = (*path, name)
            consts = {key: value["const"] for key, value in node["properties"].items() if "const" in value}
            own = tuple((".".join((*path, key)), value) for key, value in consts.items() if key != name)
            yield ".".join(inside), child, (*tags, *own)
            yield from self._below(child, inside, (*tags, *own))

    def wrong_values(self, node: Node) -> Iterator[Any]:
        """Yield values of every kind, and those just outside of the declared limits, that `node` does not allow."""
        seen: list[Any] = []
        for value in (*KINDS, *self._outside(node)):
            if not self.allows(node, value) and not any(value is other for other in seen):
                seen.append(value)
                yield value

    def _outside(self, node: Node) -> Iterator[Any]:
        node = self._followed(node)
        for alternative in node.get("oneOf") or node.get("anyOf") or ():
            yield from self._outside(alternative)
        for key, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
            if key in node:
                yield node[key] + step
                yield math.nan
        if node.get("type") == "integer":
            yield node.get("minimum", 0) + 0.5
        if "minLength" in node:
            yield "x" * (node["minLength"] - 1)
        if "maxLength" in node:
            yield "x" * (node["maxLength"] + 1)
        if "minItems" in node:
            yield [1] * (node["minItems"] - 1)
        if "maxItems" in node:
            yield [1] * (node["maxItems"] + 1)
        for choice in node.get("enum", [node["const"]] if "const" in node else []):
            yield f"{choice}x"
        if node.get("additionalProperties") is False:
            yield {"no_such_key": 1}

    def allows(self, node: Node, value: Any) -> bool:
        """Return whether the schema allows `value`; a section is looked into for unknown keys alone."""
        alone = isinstance(value, int | float | str) and not isinstance(value, bool)
        return self._allows(node, value) or (alone and self._allows(node, [value]))  # one entry for a list

    def _allows(self, node: Node, value: Any) -> bool:
        node = self._followed(node)
        alternatives = node.get("oneOf") or node.get("anyOf")
        if alternatives:
            return any(self._allows(each, value) for each in alternatives)
        if "const" in node or "enum" in node:
            return value in node.get("enum", [node.get("const")]) and type(value) is not bool
        kind = node.get("type")
        if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)  # a number without quotes
        if kind in ("integer", "number"):
            whole = isinstance(value, int) and not isinstance(value, bool)
            return (whole or (kind == "number" and isinstance(value, float))) and _within(node, value)
        if kind is not None and not isinstance(value, _TYPES[kind]):
            return False
        if isinstance(value, str):
            fits = node.get("minLength", 0) <= len(value) <= node.get("maxLength", math.inf)
            return fits and re.search(node.get("pattern", ""), value) is not None
        if isinstance(value, list):
            fits = node.get("minItems", 0) <= len(value) <= node.get("maxItems", math.inf)
            return fits and all(self._allows(node.get("items", {}), each) for each in value)
        if isinstance(value, Mapping) and node.get("additionalProperties") is False:
            return set(value) <= set(node.get("properties", {}))
        if isinstance(value, Mapping) and isinstance(node.get("additionalProperties"), dict):
            return all(self._allows(node["additionalProperties"], each) for each in value.values())
        return True

    def _followed(self, node: Node) -> Node:
        while "$ref" in node:
            rest = {key: value for key, value in node.items() if key != "$ref"}
            node = {**self.tree["$defs"][node["$ref"].rsplit("/", 1)[1]], **rest}
        return node


def _within(node: Node, value: float) -> bool:
    return (
        not math.isnan(value)
        and node.get("minimum", -math.inf) <= value <= node.get("maximum", math.inf)
        and node.get("exclusiveMinimum", -math.inf) < value < node.get("exclusiveMaximum", math.inf)
    )
