"""The recipe: one YAML file that says what is done to which model, on which data, from which seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, TypeAdapter, create_model

from compress.core.atomic import write_text
from compress.core.config import Config, Numbers
from compress.core.errors import InputError, reason_of
from compress.core.problems import show
from compress.core.sections import one_or_many
from compress.core.yaml_lines import Path_
from compress.runs.catalog import find_recipe, recipes_folder
from compress.runs.recipe_file import Finding, Flags, read
from compress.runs.stage import Stage, all_stages, as_list
from evaluators.datasets import DataConfig
from evaluators.tasks import DEFAULT, TaskSection, tasks
from evaluators.tasks.demands import unfit_parts
from spaces.zoo import ModelConfig, ModelSection


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""


def _on_one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    plain = not any(isinstance(value, dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _on_one_line)


class Recipe(Config):
    """A section that is left out is a stage that is left out.

    Here is what every recipe has; `recipe_schema` adds a section for each stage.
    """

    version: Annotated[Literal[1], Numbers()] = Field(description="version of the recipe format")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the run and its directory: letters, digits, `.`, `_` and `-`",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the one seed that everything random comes from")
    model: ModelSection | None = Field(
        None,
        description="the model to start from: a section, or a name alone, `resnet18` of timm's or SOURCE:NAME; not "
        "needed where a search finds one",
    )
    data: DataConfig = Field(description="images to train, fine-tune and evaluate on")
    task: TaskSection = Field(DEFAULT, description="what the model is for: its loss and its metrics")

    _located: Callable[[str], str] = PrivateAttr(default=str)

    def located(self, error: InputError) -> InputError:
        """Return `error` with `file:line` before each problem that begins with a key of this recipe."""
        return InputError(*(self._located(problem) for problem in error.problems))

    @property
    def given_model(self) -> ModelConfig:
        """The section `model`; InputError where the recipe has none."""
        if self.model is None:
            raise InputError("model: missing; this recipe finds its model by a search: `compress search`")
        return self.model

    def section(self, name: str) -> Any:
        """Return what the recipe says for the stage `name`: its config or a list of them, None without the section."""
        return getattr(self, name, None)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values with every default filled in."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Return the hash of the resolved recipe."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that reads back as the same recipe."""
        return yaml.dump(self.resolved(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

    def save(self, path: Path) -> None:
        """Write the resolved recipe to `path`."""
        write_text(path, self.to_yaml())


def recipe_schema() -> type[Recipe]:
    """Return what a recipe may hold: `Recipe` with a section for every stage that there is, in their order."""
    return _schema(tuple((stage.name, type(stage)) for stage in all_stages()))


@cache
def _schema(known: tuple[tuple[str, type[Stage[Any]]], ...]) -> type[Recipe]:
    """Return the schema for these stages, made once; another one where a stage has been added."""
    found = [kind(name) for name, kind in known]
    for stage in found:
        if hasattr(Recipe, stage.name) or stage.name in Recipe.model_fields:
            raise InputError(f"{stage.where} needs another name: recipes have a key or method that is called so")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", stage.name):
            raise InputError(f"{stage.where} needs another name: allowed are small letters, digits and _")
    try:
        fields: dict[str, Any] = {
            stage.name: (_section_of(stage), Field(None, description=stage.description)) for stage in found
        }
        schema: type[Recipe] = create_model("Recipe", __base__=Recipe, **fields)
    except Exception:  # pydantic, and what a third party's class does while it is looked at, may raise anything
        for stage in found:
            _try_out(stage)
        raise
    schema.__doc__ = "A section that is left out is a stage that is left out."
    return schema


def _try_out(stage: Stage[Any]) -> None:
    """Raise InputError, naming the stage, where its section cannot be part of a recipe."""
    try:
        TypeAdapter(_section_of(stage))
    except Exception as error:
        raise InputError(f"{stage.where} has a Config that is no section of a recipe: {reason_of(error)}") from error


def _section_of(stage: Stage[Any]) -> Any:
    """Return the type of a stage's section: its config, a list of them where it takes several, or null."""
    return (one_or_many(stage.Config) if stage.several else stage.Config) | None


def load_recipe(
    recipe: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    flag: Flags = "--set",
) -> Recipe:
    """Return the recipe called `recipe` (a path, or the name of a shipped one) with `overrides` applied.

    A mapping is what a file would hold. Messages name `flag` as what an override was given by.
    Raises `InputError` with every problem of the file and of the overrides, one line each.
    """
    file = recipe if isinstance(recipe, Mapping) else find_recipe(recipe)
    try:
        draft = read(file, recipe_schema(), overrides, check_sections, flag)
    except InputError as error:
        shipped = isinstance(file, Path) and recipes_folder() in file.parents
        raise InputError(*(_with_flag(problem) for problem in error.problems)) if shipped else error from None
    assert draft.value is not None
    found = for_its_task(draft.value)
    found._located = draft.located
    return found


def _with_flag(problem: str) -> str:
    """Return a problem of a shipped recipe, with how a file that it does not find is given to it."""
    absent = re.match(r"\S+\.yaml:\d+  ([\w.]+): no such file or folder", problem)
    return problem if absent is None else f"{problem}; give yours by --set {absent[1]}=PATH"


def for_its_task(recipe: Recipe) -> Recipe:
    """Return the recipe with what its sections leave to the task filled in."""
    filled: dict[str, Any] = {}
    for stage in all_stages():
        section = recipe.section(stage.name)
        configs = [stage.for_task(config, recipe.task) for config in as_list(section)]
        if configs:
            filled[stage.name] = configs if isinstance(section, list) else configs[0]
    return recipe.model_copy(update=filled)


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys in which two resolved recipes differ."""
    keys = []
    for key in dict.fromkeys([*one, *other]):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif isinstance(left, list) and isinstance(right, list) and _alike(left, right):
            for index, pair in enumerate(zip(left, right, strict=True)):
                keys += differing_keys(*pair, f"{prefix}{key}.{index}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def _alike(one: list[Any], other: list[Any]) -> bool:
    """Return whether two lists are of sections, as many in each."""
    return len(one) == len(other) and all(isinstance(value, Mapping) for value in (*one, *other))


def check_sections(sections: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with a recipe whose `sections` are well-formed: names, files, sections that need others."""
    every = all_stages()
    model, data = sections.get("model"), sections.get("data")
    if model is not None:
        found = list(check_model(model))
        yield from found
        problem = model.from_source.misfit(model, sections.get("task") or DEFAULT) if not found else None
        if problem:
            yield ("model", "name"), problem
    elif "model" in sections and all(sections.get(stage.name, ...) is None for stage in every if stage.finds_model):
        yield ("model",), "missing; name the model to start from, or a search that finds one"
    for key, path in data.paths() if data is not None else ():
        yield from _check_path(("data", key), path)
    task = sections.get("task")
    misfit = data.misfit(task) if data is not None and task is not None else None
    if data is not None and misfit:
        fitting = [name for name in tasks if tasks.get(name).targets in (None, *data.kinds())]
        yield ("data", "name"), f"{misfit}; allowed with it: task {', '.join(fitting)}"
    for stage in every:
        section = sections.get(stage.name)
        for index, config in enumerate(as_list(section)):
            key = (stage.name, index) if isinstance(section, list) else (stage.name,)
            yield from stage.check(config, key, sections)
        if "task" in sections:
            yield from unfit_parts(section, sections["task"].bind(0, ()), (stage.name,))


def check_model(model: ModelConfig, key: Path_ = ("model",)) -> Iterator[Finding]:
    """Yield what is wrong with the names and files of the section at `key`, which describes a model."""
    yield from _check_path((*key, "checkpoint"), model.checkpoint)
    wrong = model.problems()
    for name, text in wrong:
        yield (*key, *name.split(".")), text
    if not wrong:
        try:
            model.from_source.look(model)
        except InputError as error:
            yield from (((*key, "kwargs"), problem.removeprefix("model.kwargs: ")) for problem in error.problems)


def _check_path(key: Path_, path: str | None) -> Iterator[Finding]:
    try:
        there = path is None or (path != "" and Path(path).expanduser().exists())
    except (OSError, RuntimeError):  # a name that is too long, a home that is not known
        there = False
    if not there:
        yield key, f"no such file or folder; got {show(path)}"
