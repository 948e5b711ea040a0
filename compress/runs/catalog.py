"""Find out what there is: shipped recipes, models, and everything that plugs in."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from compress.core.errors import InputError, did_you_mean
from compress.core.home import at_home
from compress.core.registry import Registry


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes, in an installed package or in a source tree."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"  # of an installed wheel
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes, such as `paper/dimap_swin_base.yaml`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of `recipe`: a path first, then the name of a shipped recipe (`.yaml` may be left out).

    Raises `InputError` naming the nearest recipe, of the shipped ones and of those beside the path.
    """
    given: object = recipe
    if not isinstance(given, str | os.PathLike):
        what = "a path, a name of `compress ls recipes`, or a dictionary of what a file would hold"
        raise InputError(f"no recipe; got {type(given).__name__}; allowed: {what}")
    path = at_home(recipe)
    if path.is_file():
        return path
    names = shipped_recipes()
    for name in (str(recipe), f"{recipe}.yaml"):
        name = name.removeprefix("recipes/")
        if name in names:
            return recipes_folder() / name
    if path.is_dir():
        own = f"; its recipe is {path / 'recipe.yaml'}" if (path / "recipe.yaml").is_file() else ""
        raise InputError(f"a recipe is a file, and {str(recipe)!r} is a directory{own}")
    beside = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    known = [*beside, *names]
    stems = [name.removesuffix(".yaml") for name in known]  # an ending that all have makes no two names alike
    alike = did_you_mean(str(recipe).removesuffix(".yaml"), stems)
    near = did_you_mean(str(recipe), [*known, *stems]) if alike else ""
    raise InputError(f"no such recipe; got {str(recipe)!r}; allowed: a path, or a name of `compress ls recipes`{near}")


REGISTRIES: dict[str, tuple[str, ...]] = {
    "spaces": ("spaces.registry:spaces",),
    "strategies": ("search.strategies:strategies",),
    "methods": ("search.supernets.method:methods",),
    "evaluators": ("evaluators.candidates.evaluator:evaluators",),
    "executors": ("search.executors.executor:executors",),
    "criteria": ("compress.criteria:weight_criteria", "compress.criteria:unit_criteria"),
    "prunings": ("compress.prune.kinds:prune_kinds",),
    "transforms": ("compress.transforms:transforms",),
    "losses": ("compress.distill.losses:losses",),
    "datasets": ("evaluators.datasets:datasets",),
    "stages": ("compress.runs.stage:stages",),
    "tasks": ("evaluators.tasks.task:tasks",),
    "steps": ("compress.training.step:steps",),
    "sources": ("spaces.zoo:sources",),
    "targets": ("evaluators.latency.targets:targets",),
}
"""What plugs in, by the word of `compress ls`: where its registries are."""

KINDS = ("recipes", "models", *REGISTRIES)


def registries(kind: str) -> list[Registry[Any]]:
    """Return the registries of a kind of `REGISTRIES`."""
    found = (place.partition(":") for place in REGISTRIES[kind])
    return [getattr(import_module(module), attribute) for module, _, attribute in found]


def listing(kind: str, glob: str = "*") -> dict[str, str]:
    """Return name -> description (empty where none is at hand) of what there is of `kind` and matches `glob`.

    Models match with their source (`timm:`) or without it. An unknown kind is an `InputError`.
    """
    if kind not in KINDS:
        raise InputError(f"nothing is listed as {kind!r}; allowed {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return {
        name: description
        for name, description in _all(kind)
        if fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name.partition(":")[2], glob)
    }


def _all(kind: str) -> Iterator[tuple[str, str]]:
    if kind == "recipes":
        yield from ((name, _first_comment(recipes_folder() / name)) for name in shipped_recipes())
    elif kind == "models":
        yield from ((name, "") for name in _models())
    else:
        from compress.runs.stage import all_stages

        found = {name: registry for registry in reversed(registries(kind)) for name in registry}
        for name in [stage.name for stage in all_stages()] if kind == "stages" else sorted(found):
            yield name, found[name].summary(name)


def _first_comment(recipe: Path) -> str:
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _models() -> list[str]:
    from spaces.zoo import sources

    named = (source for source in sources if source != "space")  # spaces are listed by themselves
    return [f"{source}:{name}" for source in named for name in sources.get(source)().names()]
