"""Find out what there is: shipped recipes, and the names of models, spaces, criteria, losses, data sets, targets."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from pathlib import Path

from compress.core.errors import InputError, did_you_mean


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

    Raises `InputError` naming the nearest shipped recipe.
    """
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    names = shipped_recipes()
    for name in (str(recipe), f"{recipe}.yaml"):
        name = name.removeprefix("recipes/")
        if name in names:
            return recipes_folder() / name
    near = did_you_mean(str(recipe), [*names, *(name.removesuffix(".yaml") for name in names)])
    raise InputError(f"no such recipe; got {str(recipe)!r}; allowed: a path or one of {', '.join(names)}{near}")


def _models() -> list[str]:
    from spaces.zoo import sources

    listed = (source for source in sources if source != "space")  # spaces are listed by themselves
    return [f"{source}:{name}" for source in listed for name in sources.get(source)().names()]


def _spaces() -> list[str]:
    from spaces.registry import spaces

    return spaces.names()


def _criteria() -> list[str]:
    from compress.criteria import unit_criteria, weight_criteria

    return sorted({*weight_criteria, *unit_criteria})


def _losses() -> list[str]:
    from compress.distill.losses import losses

    return losses.names()


def _data_sets() -> list[str]:
    from typing import get_args

    from evaluators.datasets import DataConfig

    kinds = get_args(get_args(DataConfig)[0])
    return sorted(get_args(kind.model_fields["name"].annotation)[0] for kind in kinds)


def _strategies() -> list[str]:
    from search.strategies import strategies

    return strategies.names()


def _stages() -> list[str]:
    from compress.runs.stage import all_stages

    return [stage.name for stage in all_stages()]


def _targets() -> list[str]:
    from typing import get_args

    from evaluators.latency.targets import Target

    here, *sections = get_args(Target)
    return sorted([*get_args(here), *(next(iter(section.model_fields)) for section in sections)])


KINDS: dict[str, Callable[[], list[str]]] = {
    "recipes": shipped_recipes,
    "models": _models,
    "spaces": _spaces,
    "strategies": _strategies,
    "criteria": _criteria,
    "losses": _losses,
    "datasets": _data_sets,
    "targets": _targets,
    "stages": _stages,
}


def names(kind: str, glob: str = "*") -> list[str]:
    """Return the names of `kind` that match `glob`, with their source (`timm:`) or without it.

    An unknown kind is an `InputError`.
    """
    if kind not in KINDS:
        raise InputError(f"nothing is listed as {kind!r}; allowed {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return [
        name
        for name in KINDS[kind]()
        if fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name.partition(":")[2], glob)
    ]
