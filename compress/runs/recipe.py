"""The recipe: one YAML file that says what is done to which model, on which data, from which seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, PrivateAttr, Tag

from compress.core.atomic import write_text
from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import show
from compress.distill.finetune import FinetuneConfig
from compress.export.exporters import ExportConfig
from compress.prune.merge import MergeConfig
from compress.prune.structure_config import StructureConfig
from compress.prune.weights import WeightsConfig
from compress.runs.catalog import find_recipe
from compress.runs.recipe_file import Finding, read
from compress.training.config import TrainConfig
from evaluators.datasets import DataConfig
from evaluators.latency.measure import LatencyConfig
from search.config import SearchConfig
from spaces.zoo import ModelConfig

PruneConfig = Annotated[WeightsConfig | StructureConfig | MergeConfig, Field(discriminator="kind")]


def _one_or_many(value: Any) -> str:
    return "many" if isinstance(value, list | tuple) else "one"


PruneSection = Annotated[
    Annotated[PruneConfig, Tag("one")] | Annotated[list[PruneConfig], Tag("many"), Field(min_length=1)],
    Discriminator(_one_or_many),
]


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""


def _on_one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    plain = not any(isinstance(value, dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _on_one_line)


class Recipe(Config):
    """A section that is left out is a stage that is left out."""

    version: Literal[1] = Field(description="version of the recipe format")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the run and its directory: letters, digits, `.`, `_` and `-`",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the one seed that everything random comes from")
    model: ModelConfig | None = Field(None, description="the model to start from; not needed where a search finds one")
    data: DataConfig = Field(description="images to train, fine-tune and evaluate on")
    search: SearchConfig | None = Field(None, description="architecture search; its winner is the model from then on")
    train: TrainConfig | None = Field(None, description="training of the dense model, where it has no weights yet")
    prune: PruneSection | None = Field(None, description="what is removed; a list is done in order")
    finetune: FinetuneConfig | None = Field(None, description="training after pruning")
    export: ExportConfig | None = Field(None, description="writing ONNX files and checking them")
    latency: LatencyConfig | None = Field(None, description="timing the ONNX files on the target")

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

    @property
    def prunings(self) -> list[WeightsConfig | StructureConfig | MergeConfig]:
        """The prune section as a list, empty where there is none."""
        return _as_list(self.prune)

    @property
    def compares(self) -> bool:
        """Whether a stage makes another model of the first one, so that there are two to compare."""
        return self.prune is not None or self.finetune is not None

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


def _as_list(section: Any) -> list[Any]:
    if section is None:
        return []
    return list(section) if isinstance(section, list) else [section]


def load_recipe(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    flag: str = "--set",
) -> Recipe:
    """Return the recipe called `recipe` (a path, or the name of a shipped one) with `overrides` applied.

    Raises `InputError` with every problem of the file and of the overrides, one line each.
    """
    draft = read(find_recipe(recipe), Recipe, overrides, check_sections, flag)
    assert draft.value is not None
    draft.value._located = draft.located
    return draft.value


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys in which two resolved recipes differ."""
    keys = []
    for key in dict.fromkeys([*one, *other]):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def check_sections(sections: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with a recipe whose `sections` are well-formed: names, files, sections that need others."""
    model, search = sections.get("model"), sections.get("search")
    if model is not None:
        yield from check_model(model)
    elif "model" in sections and search is None and "search" in sections:
        yield ("model",), "missing; name the model to start from, or a search that finds one"
    if search is not None and search.space.name == "table":
        for name in ("train", "prune", "finetune", "export", "latency"):
            if sections.get(name) is not None:
                yield (name,), "a table (search.space) holds results, not networks; leave the section out"
    data = sections.get("data")
    if data is not None:
        if data.name in ("npz", "imagefolder", "torchvision") and not getattr(data, "download", False):
            yield from _check_path(("data", "path"), data.path)
        for name in ("train", "finetune"):
            if sections.get(name) is not None and data.name == "none":
                yield (name,), "needs images, but data.name is none; leave the section out or name a data set"
    for index, pruning in enumerate(_as_list(sections.get("prune"))):
        if getattr(pruning, "steps", 1) > 1 and sections.get("finetune", ...) is None:
            key = ("prune", index, "steps") if isinstance(sections["prune"], list) else ("prune", "steps")
            yield key, "several steps are fine-tuned between, so they need a finetune section"
    if sections.get("latency") is not None and sections.get("export", ...) is None:
        yield ("latency",), "times ONNX files, so it needs an export section"


def check_model(model: ModelConfig) -> Iterator[Finding]:
    """Yield what is wrong with the names and files of the section `model`."""
    yield from _check_path(("model", "checkpoint"), model.checkpoint)
    wrong = model.problems()
    for key, text in wrong:
        yield ("model", *key.split(".")), text
    if not wrong:
        try:
            model.from_source.look(model)
        except InputError as error:
            yield from ((("model", "kwargs"), problem.removeprefix("model.kwargs: ")) for problem in error.problems)


def _check_path(key: tuple[str, ...], path: str | None) -> Iterator[Finding]:
    try:
        there = path is None or Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, a home that is not known
        there = False
    if not there:
        yield key, f"no such file or folder; got {show(path)}"
