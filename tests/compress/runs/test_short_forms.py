"""Sections that a recipe writes as a name alone: which there are, misspelt ones, and keys that are set in them."""

from __future__ import annotations

from typing import Any

import pytest

from compress.core.errors import InputError
from compress.runs.recipe import Recipe, load_recipe

SEARCH = {
    "space": "mobilenetv3",
    "strategy": "random",
    "objective": {"maximize": ["params"]},
    "evaluator": {"kind": "proxy", "scores": ["params"]},
}


def load(overrides: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    return load_recipe({"version": 1, "name": "short", "model": "resnet18", "data": "digits", **sections}, overrides)


@pytest.mark.parametrize(
    ("key", "written", "near"),
    [
        ("data", {"data": "digist"}, "digits"),
        ("task", {"task": "clasification"}, "classification"),
        ("finetune.distill", {"finetune": {"distill": "kdd"}}, "kd"),
        ("finetune.distill.1", {"finetune": {"distill": ["logits", "cosin"]}}, "cosine"),
        ("train.step", {"train": {"step": "superviset"}}, "supervised"),
        ("search.evaluator", {"search": {**SEARCH, "evaluator": "trian"}}, "train"),
        ("search.executor", {"search": {**SEARCH, "executor": "locl"}}, "local"),
        ("supernet.method", {"supernet": {"method": "single_pth", "space": "pooling"}}, "single_path"),
    ],
)
def test_a_misspelt_name_alone_gets_the_nearest(key: str, written: dict[str, Any], near: str) -> None:
    with pytest.raises(InputError) as error:
        load(**written)
    (problem,) = error.value.problems
    assert problem.startswith(f"recipe  {key}: unknown value; got ")
    assert f" or a section of keys; did you mean {near!r}?" in problem


def test_names_that_need_more_are_not_said_to_stand_alone() -> None:
    with pytest.raises(InputError, match=r"data: unknown value; got \"npy\"; allowed digits, [a-z_, ]+ or a section"):
        load(data="npy")
    with pytest.raises(InputError, match=r"^recipe  data: wrong type; got 3; allowed a section of keys$"):
        load(data=3)


def test_a_space_is_named_alone() -> None:
    assert load(search=SEARCH).resolved() == load(search={**SEARCH, "space": {"name": "mobilenetv3"}}).resolved()
    with pytest.raises(InputError, match=r"search\.space: unknown space; got 'mobilenetv4'.*mean 'mobilenetv3'"):
        load(search={**SEARCH, "space": "mobilenetv4"})
    with pytest.raises(InputError, match=r"search\.space: got 3; allowed: a section of keys, NAME of a space"):
        load(search={**SEARCH, "space": 3})


def test_keys_are_set_in_a_section_that_is_named_alone() -> None:
    assert load({"data.image_size": 16}).resolved()["data"]["image_size"] == 16
    for distill in ("kd", ["kd"]):
        found = load({"finetune.distill.temperature": 2.0}, finetune={"distill": distill})
        assert "'temperature': 2.0" in str(found.resolved()["finetune"]["distill"])
    second = load({"finetune.distill.1.temperature": 2.0}, finetune={"distill": ["logits", "kd"]})
    assert second.resolved()["finetune"]["distill"][1]["temperature"] == 2.0
    assert load({"search.space.preset": "tiny"}, search=SEARCH).resolved()["search"]["space"]["preset"] == "tiny"
    teachers = {"large": {"model": "resnet34"}}
    taught = load({"finetune.teachers.large.model.pretrained": True}, finetune={"distill": "kd", "teachers": teachers})
    assert taught.resolved()["finetune"]["teachers"]["large"]["model"]["pretrained"] is True


def test_a_name_that_stands_for_no_section_takes_no_keys() -> None:
    with pytest.raises(InputError, match=r'--set  finetune\.lr\.x: finetune\.lr is no section; got "low"'):
        load({"finetune.lr.x": 1}, finetune={"lr": "low"})
