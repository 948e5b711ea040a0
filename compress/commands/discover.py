"""Commands that find out: inspect, ls, cat, cp, validate, schema, doctor."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from compress.commands.options import JsonFlag, QuietFlag, RecipeFlag, SetFlag, overrides_of, print_json
from compress.core.atomic import write_text
from compress.core.errors import InputError
from compress.core.progress import set_quiet
from compress.runs.catalog import KINDS, find_recipe, listing


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="timm name, torchvision:NAME, builtin:NAME, python:PACKAGE.MODULE:CALLABLE,"
            " a bundle, a run or a recipe.",
        ),
    ],
    latency: Annotated[bool, typer.Option("--latency", help="Also how long each layer takes, and would take.")] = False,
    set_: SetFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Show what of a model can be pruned.

    One line for each group of channels, heads or MLP units that go together, with the MACs and parameters of a unit;
    then what cannot be pruned, and why. With --latency also how long each layer takes with ONNX Runtime, and what each
    narrower width and each block less would save: narrowed copies of the model are timed, which takes a minute or two
    and is kept for the next time.
    """
    set_quiet(quiet)
    from compress.runs.inspection import inspect_model

    result = inspect_model(model, overrides_of(set_), latency)
    if json:
        print_json(result.to_dict())
    else:
        result.print()


def ls(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help=f"What to list: {', '.join(KINDS)}."),
    ] = "recipes",
    glob: Annotated[str, typer.Argument(metavar="GLOB", help="Show only names that match, such as '*swin*'.")] = "*",
    json: JsonFlag = False,
) -> None:
    """List what there is: names, and on a terminal what they are."""
    found = listing(kind, glob)
    if json:
        print_json(list(found))
        return
    if not found:
        raise InputError(f"no {kind} match {glob!r}")
    if sys.stdout.isatty() and any(found.values()):
        width = max(map(len, found))
        room = shutil.get_terminal_size().columns - width - 2
        shown = (f"{name:{width}}  {shorten(text, max(room, 20), placeholder='...')}" for name, text in found.items())
        print("\n".join(line.rstrip() for line in shown))
    else:  # one name a line, for other programs
        print("\n".join(found))


def cat(
    recipe: RecipeFlag,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default filled in.")] = False,
    set_: SetFlag = None,
    json: JsonFlag = False,
) -> None:
    """Print a recipe."""
    from compress.runs.recipe_file import read_text

    if not resolved and not set_ and not json:
        print(read_text(find_recipe(recipe)), end="")
        return
    from compress.runs.recipe import load_recipe

    loaded = load_recipe(recipe, overrides_of(set_))
    if json:
        print_json(loaded.resolved())
    else:
        print(loaded.to_yaml(), end="")


def cp(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a file.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="File or folder to copy it to.")],
) -> None:
    """Copy a recipe, to edit it."""
    from compress.runs.recipe_file import read_text

    source = find_recipe(recipe)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists and stays as it is; name another destination")
    write_text(target, read_text(source))
    print(target)


def validate(
    recipe: RecipeFlag,
    set_: SetFlag = None,
    json: JsonFlag = False,
) -> None:
    """Check a recipe without running it.

    Every problem is named at once, one a line.
    """
    from compress.runs.recipe import load_recipe

    if not json:
        load_recipe(recipe, overrides_of(set_))
        print(f"{recipe}: valid")
        return
    try:
        load_recipe(recipe, overrides_of(set_))
    except InputError as error:
        print_json({"valid": False, "problems": error.problems})
        raise typer.Exit(error.exit_code) from error
    print_json({"valid": True, "problems": []})


def schema() -> None:
    """Print the JSON schema of recipes."""
    from compress.runs.recipe import recipe_schema

    print_json(recipe_schema().model_json_schema())


def doctor(json: JsonFlag = False) -> None:
    """Say what this machine and installation have and lack.

    One line for each thing: what was found, what it is for, and what to do where it is missing; then what is wrong.
    """
    from compress.runs.doctor import examine, print_examination

    examination = examine()
    if json:
        print_json(examination)
    else:
        print_examination(examination)
