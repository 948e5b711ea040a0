"""Commands that run a recipe or show what a run left: run, plan, report, compare; of single stages: `stages.py`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.commands.options import (
    DevicesFlag,
    JsonFlag,
    OutFlag,
    QuietFlag,
    RayFlag,
    RecipeFlag,
    ResumeFlag,
    SeedFlag,
    SetFlag,
    check_on_ray,
    flags_of,
    on_ray,
    overrides_of,
    print_json,
)
from compress.core.errors import InputError
from compress.core.progress import set_quiet

if TYPE_CHECKING:
    from compress.runs.pipeline import RunResult


def run(
    recipe: RecipeFlag,
    out: OutFlag = None,
    set_: SetFlag = None,
    resume: ResumeFlag = False,
    device: DevicesFlag = "auto",
    seed: SeedFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
    ray_address: RayFlag = None,
) -> None:
    """Run all stages of a recipe.

    Ends with a table and a line that sum up what came out; report.html in the run directory tells the rest.
    """
    run_stages("run", None, recipe, out, set_ or [], resume, device, seed, quiet, json, ray_address)


def run_stages(
    command: str,
    section: str | None,
    recipe: str,
    out: Path | None,
    pairs: list[str],
    resume: bool,
    device: str,
    seed: int | None,
    quiet: bool,
    json: bool,
    ray_address: str | None = None,
) -> None:
    """Run a recipe for `compress <command>`, which needs it to have the section, and print what came out."""
    set_quiet(quiet)
    from compress.runs.pipeline import run as run_recipe
    from compress.runs.recipe import load_recipe

    if ray_address is not None:
        check_on_ray(load_recipe(recipe, overrides_of(pairs, seed), flags_of(seed)))
    loaded = load_recipe(recipe, overrides_of(pairs, seed) | on_ray(ray_address), flags_of(seed, ray_address))
    if section is not None and loaded.section(section) is None:
        raise InputError(f"{recipe}  {section}: the recipe has no such section; add one, or use `compress run`")
    words = words_of(command, recipe, out, pairs, device, seed)
    words += ["--ray-address", ray_address] if ray_address is not None else []
    result = run_recipe(loaded, out=out, resume=resume, device=device, resume_hint=shlex.join([*words, "--resume"]))
    print_result(result, json)


def words_of(command: str, recipe: str, out: Path | None, pairs: list[str], device: str, seed: int | None) -> list[str]:
    """Return the command line that these flags were given on."""
    words = ["compress", command, "--recipe", recipe]
    words += [word for pair in pairs for word in ("--set", pair)]
    words += ["--out", str(out)] if out else []
    words += ["--seed", str(seed)] if seed is not None else []
    return words + (["--device", device] if device != "auto" else [])


def print_result(result: RunResult, json: bool) -> None:
    """Print what came out of a run."""
    if json:
        print_json({**result.report, "directory": str(result.directory)})
        print(result.summary, file=sys.stderr)
    else:
        from compress.report.closing import closing_table

        print(closing_table(result.report))
        print(result.summary)


def plan(
    recipe: RecipeFlag,
    set_: SetFlag = None,
    device: DevicesFlag = "auto",
    seed: SeedFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Show what a recipe would remove, before it does.

    Also the MACs and parameters that would be left, and how long the run would take. Nothing is trained or written;
    what depends on weights is told for those that the recipe starts from.
    """
    set_quiet(quiet)
    from compress.runs.dry_run import dry_run
    from compress.runs.recipe import load_recipe

    result = dry_run(load_recipe(recipe, overrides_of(set_, seed), flags_of(seed)), device)
    if json:
        print_json(result.to_dict())
    else:
        result.print()


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write report.html of a finished run anew.

    Prints where it is and the summary of the run.
    """
    set_quiet(quiet)
    from compress.report import summary_of, write_report

    page = write_report(run_dir)
    if json:
        print_json({"report": str(page), "summary": summary_of(run_dir)})
    else:
        print(page)
        print(summary_of(run_dir))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Two run directories or more.")],
    json: JsonFlag = False,
) -> None:
    """Print finished runs side by side."""
    from compress.report import compare_runs, comparison_json, comparison_notes, comparison_table

    if len(runs) < 2:
        raise InputError(f"compare needs two runs or more; got {len(runs)}")
    compared: Any = compare_runs(runs)
    if json:
        print_json(comparison_json(compared))
        return
    import shutil

    from rich.console import Console

    Console(width=max(120, shutil.get_terminal_size().columns)).print(comparison_table(compared))
    for note in comparison_notes(compared):
        print(note)
