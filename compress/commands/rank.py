"""The command `compress rank`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from compress.commands.options import (
    DevicesFlag,
    JsonFlag,
    OutFlag,
    QuietFlag,
    RecipeFlag,
    ResumeFlag,
    SeedFlag,
    SetFlag,
    flags_of,
    overrides_of,
)
from compress.commands.run import print_result, words_of
from compress.core.progress import set_quiet


def rank(
    recipe: RecipeFlag,
    truth: Annotated[
        str | None, typer.Option("--truth", metavar="TABLE.csv", help="True values, one network a row.")
    ] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", metavar="OUT.csv", help="Write the scores of all networks there, too.")
    ] = None,
    against: Annotated[
        int | None,
        typer.Option("--against", metavar="N", help="Train N of the networks alone, where there is no table."),
    ] = None,
    architectures: Annotated[
        int | None,
        typer.Option("--architectures", metavar="N", help="Score N networks (default: the table's, or 100)."),
    ] = None,
    out: OutFlag = None,
    set_: SetFlag = None,
    resume: ResumeFlag = False,
    device: DevicesFlag = "auto",
    seed: SeedFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Tell how well a supernet ranks networks.

    Trains the recipe's supernet, unless the run has trained it, scores networks with inherited weights, and holds the
    scores against true values; the recipe's later sections are not run.
    """
    set_quiet(quiet)
    from compress.runs.pipeline import run as run_recipe
    from compress.runs.ranking import ranking_of
    from compress.runs.recipe import load_recipe

    pairs = set_ or []
    flags: dict[str, Any] = {"truth": truth, "scores": scores, "against": against, "architectures": architectures}
    given = {name: value for name, value in flags.items() if value is not None}
    overrides = overrides_of(pairs, seed) | {f"rank.{name}": value for name, value in given.items()}
    told = flags_of(seed) | {f"rank.{name}": f"--{name}" for name in given}
    loaded = load_recipe(recipe, overrides, told)
    if loaded.section("rank") is None:
        loaded = load_recipe(recipe, overrides | {"rank": {}}, told | {"rank": ""})
    alone, directory = ranking_of(loaded, out)
    words = words_of("rank", recipe, out, pairs, device, seed)
    words += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    print_result(
        run_recipe(alone, out=directory, resume=resume, device=device, resume_hint=shlex.join([*words, "--resume"])),
        json,
    )
