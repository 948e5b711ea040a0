"""Every key of a recipe, generated from its schema, given values of every wrong kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from compress.runs.recipe import load_recipe, recipe_schema

SMALL = "version: 1\nname: small\nmodel: {source: builtin, name: cifar_resnet20}\ndata: {name: none}\n"
VALUES = (True, "é☃\0 \n x", "x" * 5000, -1, 10**40, math.nan, [None], {"a": {"b": 1}}, {1: 2})
TREE = recipe_schema().model_json_schema()
Key = tuple[str, ...]
Tags = tuple[tuple[str, Any], ...]


def _followed(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = {**TREE["$defs"][node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _keys(node: dict[str, Any], path: Key = (), tags: Tags = ()) -> Iterator[tuple[str, Tags]]:
    """Yield each dotted key below `node`, with the keys (`kind`, `name`, `loss`) that choose the section it is in."""
    node = _followed(node)
    if path:
        yield ".".join(path), tags
    for alternative in node.get("oneOf") or node.get("anyOf") or ():
        if len(path) < 5:
            yield from _keys(alternative, path, tags)
    properties = {name: _followed(child) for name, child in node.get("properties", {}).items()}
    own = tuple((".".join((*path, name)), child["const"]) for name, child in properties.items() if "const" in child)
    for name, child in properties.items():
        yield from _keys(child, (*path, name), (*tags, *own))


KEYS = list(dict.fromkeys(_keys(TREE)))


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key, _ in KEYS}))
def test_a_wrong_value_is_one_sentence_for_every_key(tmp_path: Path, section: str) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    refused = 0
    for key, tags in KEYS:
        if key.partition(".")[0] != section:
            continue
        for value in VALUES:
            try:
                load_recipe(recipe, {**{name: choice for name, choice in tags if name != key}, key: value})
            except InputError as error:
                refused += 1
                assert all("\n" not in problem for problem in error.problems), (key, value)
                assert any(section in problem for problem in error.problems), (key, value, error.problems)
    assert refused > 0


def test_keys_of_every_section_are_tried() -> None:
    keys = {key for key, _ in KEYS}
    assert set(recipe_schema().model_fields) <= keys and len(KEYS) > 300
    assert {
        "prune.budget.macs",
        "search.strategy.name",
        "finetune.distill.temperature",
        "latency.target.command",
    } <= keys
