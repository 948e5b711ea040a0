"""Every key of a recipe refuses what it does not declare, in one sentence that names it."""

from __future__ import annotations

import pytest

from compress.core.errors import InputError
from compress.runs.recipe import load_recipe, recipe_schema
from compress.testing.values import Declared

SMALL = {
    "version": 1,
    "name": "small",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {"name": "none"},
}
DECLARED = Declared(recipe_schema())
KEYS = list({(key, tags): (key, node, tags) for key, node, tags in DECLARED.keys()}.values())


@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key, _, _ in KEYS}))
def test_what_a_key_does_not_declare_is_refused_by_its_name(section: str) -> None:
    tried = 0
    for key, node, tags in KEYS:
        if key.partition(".")[0] != section:
            continue
        for value in DECLARED.wrong_values(node):
            tried += 1
            with pytest.raises(InputError) as caught:
                load_recipe(SMALL, {**{name: choice for name, choice in tags if name != key}, key: value})
                pytest.fail(f"{key} takes {value!r}")
            problems = caught.value.problems
            assert all("\n" not in problem for problem in problems), (key, value)
            assert any(key in problem for problem in problems), (key, value, problems)
    assert tried > 0


def test_keys_of_every_section_are_tried() -> None:
    keys = {key for key, _, _ in KEYS}
    assert set(recipe_schema().model_fields) <= keys and len(KEYS) > 300
    assert {
        "prune.budget.macs",
        "search.strategy.name",
        "finetune.distill.temperature",
        "latency.target.command",
    } <= keys
