from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Discriminator, Field, Tag

from compress.core.config import Config
from compress.core.errors import InputError
from compress.runs.recipe_file import read, split_overrides


class Budget(Config):
    macs: float | None = Field(None, gt=0, lt=1, description="share of MACs to keep")


class Weights(Config):
    kind: Literal["weights"]
    sparsity: float = Field(ge=0, lt=1, description="share of weights set to zero")
    criterion: Literal["dimap", "magnitude"] = "dimap"


class Structure(Config):
    kind: Literal["structure"]
    budget: Budget = Budget()
    include: list[str] = Field(default_factory=list)


Prune = Annotated[Weights | Structure, Field(discriminator="kind")]


class Model(Config):
    name: str = Field(description="model name")
    size: tuple[int, int, int] | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Small(Config):
    version: Literal[1]
    name: str = Field(pattern="^[a-z]+$", description="lower-case letters")
    seed: int = Field(0, ge=0)
    lr: float = 1.0
    model: Model
    prune: Annotated[
        Annotated[Prune, Tag("one")] | Annotated[list[Prune], Tag("many")],
        Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
    ]


class Optional(Small):
    prune: Structure | None = None  # type: ignore[assignment]


class Kind(enum.Enum):
    WEIGHTS = "weights"


GOOD = "version: 1\nname: run\nmodel: {name: resnet, size: [3, 32, 32]}\nprune: {kind: weights, sparsity: 0.5}\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str, **overrides: Any) -> list[str]:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read(path, Small, {key.replace("__", "."): value for key, value in overrides.items()})
    return [problem.replace(f"{path}:", "line ") for problem in caught.value.problems]


def test_a_good_recipe_reads_with_defaults_and_tuples(tmp_path: Path) -> None:
    recipe = read(write(tmp_path, GOOD), Small).value
    assert recipe is not None
    assert recipe.model.size == (3, 32, 32)
    assert isinstance(recipe.prune, Weights)
    assert recipe.prune.criterion == "dimap"


def test_all_problems_come_at_once_with_the_misspelt_key_first(tmp_path: Path) -> None:
    text = "version: 1\nname: A b\nsede: 1\nmodel: {nmae: x}\nlr: many\nprune: {kind: weight}\n"
    assert problems(tmp_path, text) == [
        "line 3  sede: unknown key; allowed lr, model, name, prune, seed, version; did you mean 'seed'?",
        "line 4  model.nmae: unknown key; allowed kwargs, name, size; did you mean 'name'?",
        "line 6  prune.kind: unknown value; got \"weight\"; allowed weights, structure; did you mean 'weights'?",
        'line 2  name: does not fit; got "A b"; allowed lower-case letters',
        'line 5  lr: wrong type; got "many"; allowed a number',
    ]


def test_a_foreign_version_is_named_before_anything_else(tmp_path: Path) -> None:
    text = GOOD.replace("version: 1", "version: 2") + "sede: 3\n"
    assert problems(tmp_path, text)[0] == "line 1  version: unknown value; got 2; allowed 1"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("sparsity: 1.5", "prune.sparsity: out of range; got 1.5; allowed at least 0 and below 1"),
        ("sparsity: half", 'prune.sparsity: wrong type; got "half"; allowed a number, at least 0 and below 1'),
        ("sparsity: true", "prune.sparsity: wrong type; got true; allowed a number, at least 0 and below 1"),
        ("sparsity: .nan", "prune.sparsity: out of range; got NaN; allowed at least 0 and below 1"),
        ("", "prune.sparsity: required, but missing: share of weights set to zero"),
        (
            "sparsity: 0.5, criterion: dimapp",
            "prune.criterion: unknown value; got \"dimapp\"; allowed dimap, magnitude; did you mean 'dimap'?",
        ),
    ],
)
def test_a_wrong_value_names_what_is_allowed(tmp_path: Path, wrong: str, expected: str) -> None:
    assert problems(tmp_path, GOOD.replace("sparsity: 0.5", wrong)) == [f"line 4  {expected}"]


def test_entries_of_a_list_are_named_by_their_number(tmp_path: Path) -> None:
    text = GOOD.split("prune")[0] + (
        "prune:\n  - {kind: weights, sparsity: 0.5}\n  - kind: structure\n    budget: {macs: 2}\n  - {sparsity: 1}\n"
    )
    assert problems(tmp_path, text) == [
        "line 7  prune.1.budget.macs: out of range; got 2; allowed above 0 and below 1",
        "line 8  prune.2.kind: required, but missing; allowed structure, weights",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- 1\n", "mapping"),
        ("just words", "mapping"),
        ("a:\n\tb: 1\n", "tab"),
        (GOOD + "seed: 1\nseed: 2\n", "twice"),
    ],
)
def test_what_is_no_recipe_at_all_gets_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert words in found[0]


def test_binary_and_missing_files_are_input_errors(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path in (binary, tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError):
            read(path, Small)


def test_overrides_reach_nested_keys_lists_and_whole_sections(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    one = read(path, Small, split_overrides(["prune.sparsity=0.7", "model.kwargs.depth=[2, 2]", "lr=2e-5"])).value
    assert one is not None
    assert (one.prune.sparsity, one.model.kwargs, one.lr) == (0.7, {"depth": [2, 2]}, 2e-5)  # type: ignore[union-attr]
    path = write(tmp_path, GOOD.replace("{kind: weights, sparsity: 0.5}", "[{kind: weights, sparsity: 0.5}]"))
    for key in ("prune.sparsity", "prune.0.sparsity"):
        assert read(path, Small, {key: 0.1}).value.prune[0].sparsity == 0.1  # type: ignore[index, union-attr]


def test_a_bad_override_is_reported_in_the_same_form_as_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, prune__sparsity=1.5, model__name__x=1, modle__name="x", prune__2="y")
    assert found == [
        '--set  model.name.x: model.name is no section; got "resnet"',
        "--set  modle: unknown key; allowed lr, model, name, prune, seed, version; did you mean 'model'?",
        "--set  prune.2: unknown key; allowed criterion, kind, sparsity",
        "--set  prune.sparsity: out of range; got 1.5; allowed at least 0 and below 1",
    ]


def test_an_override_neither_gets_lost_nor_takes_another_away(tmp_path: Path) -> None:
    whole = "prune={kind: weights, sparsity: 0.1}"
    path = write(tmp_path, GOOD)
    last = read(path, Small, split_overrides(["prune.sparsity=0.3", whole, "prune.sparsity=0.4"])).value
    assert last is not None and last.prune.sparsity == 0.4  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"^--set  prune: takes the place of prune.sparsity, .*; set prune first$"):
        read(path, Small, split_overrides(["prune.sparsity=0.3", whole]))
    assert read(path, Optional, split_overrides(["prune.include=a", "prune=null"])).value.prune is None  # type: ignore[union-attr]


def test_values_of_python_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    values = {"name": "run", "size": np.array([3, 8, 8]), "kwargs": {"weights": tmp_path, "depth": np.int64(2)}}
    written = {
        "version": 1,
        "name": "run",
        "model": values,
        "prune": {"kind": Kind.WEIGHTS, "sparsity": np.float32(0.5)},
    }
    recipe = read(written, Small, {"lr": torch.tensor(2.0), "prune.criterion": "DIMAP"}).value
    assert recipe is not None
    assert (recipe.lr, recipe.model.size, recipe.model.kwargs) == (2, (3, 8, 8), {"weights": str(tmp_path), "depth": 2})
    with pytest.raises(InputError) as caught:
        read({**written, "lr": "x"}, Small, {"model.kwargs.act": object(), "seed": -1}, flag="overrides")
    assert caught.value.problems == [
        "overrides  model.kwargs.act: no value of a recipe; got object; allowed numbers, texts, lists, mappings",
        "overrides  seed: out of range; got -1; allowed at least 0",
        'recipe  lr: wrong type; got "x"; allowed a number',
    ]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("prune:", "line 4  prune: nothing is said; allowed a section of keys, {} for one with its defaults, null"),
        (
            "prune: true",
            "line 4  prune: wrong type; got true; allowed a section of keys ({} for its defaults), or null",
        ),
    ],
)
def test_it_is_said_whether_an_optional_section_is_meant(tmp_path: Path, wrong: str, expected: str) -> None:
    path = write(tmp_path, GOOD.split("prune")[0] + wrong + "\n")
    with pytest.raises(InputError) as caught:
        read(path, Optional)
    assert [problem.replace(f"{path}:", "line ")[: len(expected)] for problem in caught.value.problems] == [expected]


def test_words_that_others_read_otherwise_are_not_handed_on(tmp_path: Path) -> None:
    given = "bias: no, deep: {norm: None}, sizes: [1_000], quoted: 'no', text: yesterday"
    assert problems(tmp_path, GOOD.replace("size: [3, 32, 32]", f"kwargs: {{{given}}}")) == [
        'line 3  model.kwargs.bias: a text here, false elsewhere; got no; allowed false, or "no" for the text',
        'line 3  model.kwargs.deep.norm: a text here, null elsewhere; got None; allowed null, or "None" for the text',
        'line 3  model.kwargs.sizes.0: a text here, 1000 elsewhere; got 1_000; allowed 1000, or "1_000" for the text',
    ]


@pytest.mark.parametrize("pair", ["seed", "=1", "seed=[1", "name=a #1", "model={a=1}", "model={name: a, name: b}"])
def test_a_set_flag_of_another_form_is_refused(pair: str) -> None:
    with pytest.raises(InputError, match="--set"):
        split_overrides([pair])


def test_checks_run_on_the_sections_that_are_valid(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("sparsity: 0.5", "sparsity: 5"))
    with pytest.raises(InputError) as caught:
        read(path, Small, {}, lambda sections: [(("model", "name"), f"no such {sections['model'].name}")])
    assert [problem.split("  ", 1)[1] for problem in caught.value.problems] == [
        "prune.sparsity: out of range; got 5; allowed at least 0 and below 1",
        "model.name: no such resnet",
    ]


def test_a_problem_found_later_gets_the_place_of_its_key(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    draft = read(path, Small, {"model.kwargs.depth": 1})
    assert draft.located("model.name: unknown") == f"{path}:3  model.name: unknown"
    assert draft.located("model.kwargs.depth: too small") == "--set  model.kwargs.depth: too small"
    assert draft.located("the disk is full") == "the disk is full"
