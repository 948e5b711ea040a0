"""Flags that several commands share, and what happens to the errors of all of them."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from compress.core.errors import CompressError, InputError, in_one_line
from compress.core.home import at_home

if TYPE_CHECKING:
    from compress.runs.recipe import Recipe

P = ParamSpec("P")
T = TypeVar("T")

RecipeFlag = Annotated[
    str, typer.Option("--recipe", "-r", metavar="FILE", help="Recipe: a file, or a shipped one's name.")
]
OutFlag = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run directory (default: runs/<name>).")
]
SetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a key: prune.budget.macs=0.6; repeatable."),
]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
DeviceFlag = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps."),
]
DevicesFlag = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="cpu, mps, cuda:1, or cuda:0,cuda:1."),
]
SeedFlag = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Seed to use instead of the recipe's.")
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no log lines on standard error.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

RayFlag = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="ADDRESS", help="Ray cluster for the trials: HOST:PORT, or auto."),
]

SpaceSetFlag = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="OPTION=VALUE", help="Change an option of the space; repeatable."),
]
ClassesFlag = Annotated[int | None, typer.Option("--classes", metavar="N", min=1, help="Classes to tell apart.")]
ChannelsFlag = Annotated[int | None, typer.Option("--channels", metavar="N", min=1, help="Channels of an image.")]
SizeFlag = Annotated[
    int | None, typer.Option("--size", metavar="N", min=1, help="Height and width of an image in pixels.")
]


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command: errors become one line each on standard error and the exit code of the contract."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in kwargs.items():
            kwargs[name] = _with_home(value)
        try:
            return command(*args, **kwargs)
        except CompressError as error:
            for problem in getattr(error, "problems", None) or [str(error)]:
                print(problem, file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            print(f"\n{str(error) or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(130) from error
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise  # typer's own; a reader that has seen enough, as `head`, is no error of ours
        except (Exception, SystemExit) as error:  # a fault of ours, or of a library or module that was called
            file = error.filename if isinstance(error, OSError) else None
            what, place = in_one_line(error), _place(error)
            where = f": {file}" if file is not None else "" if place in what else f" ({place})"
            print(f"{command.__name__} failed: {what}{where}", file=sys.stderr)
            raise typer.Exit(1 if file is None else 2) from error

    return wrapper


def _with_home(value: Any) -> Any:
    """Return paths with `~` for the user's folder, which a shell leaves alone in quotes and in `--out=~/runs`."""
    if isinstance(value, list):
        return [_with_home(each) for each in value]
    return at_home(value) if isinstance(value, Path) else value


def _place(error: BaseException) -> str:
    """Return the file and line that raised `error`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def overrides_of(pairs: list[str] | None, seed: int | None = None) -> dict[str, Any]:
    """Return the values of `--set` and `--seed` as dotted key -> value."""
    from compress.runs.recipe_file import split_overrides

    return split_overrides(pairs or []) | ({} if seed is None else {"seed": seed})


def on_ray(address: str | None) -> dict[str, Any]:
    """Return what `--ray-address` stands for as dotted key -> value."""
    return {} if address is None else {"search.executor.kind": "ray", "search.executor.address": address}


def check_on_ray(recipe: Recipe) -> None:
    """Raise InputError where `--ray-address` has nothing to go with."""
    if recipe.section("search") is None:
        raise InputError("--ray-address  search: the recipe searches nothing; leave the flag out, or add the section")


def flags_of(seed: int | None, address: str | None = None) -> dict[str, str]:
    """Return which of the flags `--seed` and `--ray-address` set a dotted key, for messages about it."""
    by_seed = {} if seed is None else {"seed": "--seed"}
    return by_seed | dict.fromkeys(on_ray(address), "--ray-address")


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
