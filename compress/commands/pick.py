"""The command `compress pick`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.commands.options import JsonFlag, QuietFlag, print_json
from compress.core.errors import InputError
from compress.core.progress import set_quiet

if TYPE_CHECKING:
    from compress.picking.budget import Budget
    from compress.picking.members import Members, Models
    from compress.sorted.family import Family


def pick(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Run with a family (`compress sort`) or a front (`prune.budgets`), or its folder."
        ),
    ],
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="TIME", help="Most time per batch, such as 3.5ms.")
    ] = None,
    macs: Annotated[
        str | None, typer.Option("--macs", metavar="COUNT", help="Most MACs: 20M, or a fraction of the full network's.")
    ] = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="COUNT", help="Most parameters: 2M, or such a fraction.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="BYTES", help="Largest ONNX file, such as 5MB.")] = None,
    all_fronts: Annotated[
        bool, typer.Option("--all-fronts", help="Write all that are best within some budget, as ONNX.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time members that were not, where the budget needs it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="New directory (default: RUN/picks/<budget>, written anew)."),
    ] = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write the best of a family or front within a budget.

    As bundle and ONNX file, without any training or search; all budgets given hold together. Of a run with both it is
    the family, which is made later; name the folder front to take from that.
    """
    set_quiet(quiet)
    from compress.picking.budget import Budget

    budget = Budget.parse({"latency": latency, "macs": macs, "params": params, "size": size})
    if all_fronts == bool(budget.limits):
        both = "both a budget and --all-fronts" if all_fronts else "no budget"
        raise InputError(f"pick: got {both}; give --latency, --macs, --params or --size, or else --all-fronts")
    if measure and not {"latency", "size"} & set(budget.limits):
        raise InputError("--measure  goes with --latency or --size; MACs and parameters are known of every member")
    from compress.picking.pick import default_place, write_front, write_pick

    members, opened = _found(run, budget if measure else None)
    if all_fronts:
        index, target = write_front(members, opened, out), out or default_place(members)
        _print(index, [_line(members, target / each["file"], each) for each in index["members"]], json)
        return
    found = write_pick(members, opened, budget, out)
    _print(found, [_line(members, out or default_place(members, budget), found)], json)


def _found(run: Path, measured_for: Budget | None) -> tuple[Members, Callable[[], Models]]:
    """Return what there is to pick from, a family before a front, and what opens its models.

    Members of a family that a budget asks to be measured are.
    """
    from compress.prune.allocation.front_members import Front
    from compress.sorted.family import Family
    from compress.sorted.networks import Networks

    if Family.folder_in(run) is not None:
        family = Family.load(run)
        if measured_for is not None:
            family = _measured(family, measured_for)
        return family, partial(Networks.open, family)
    if Front.folder_in(run) is None:
        what = "holds no family/family.json and no front/index.json" if run.is_dir() else "is not a directory"
        raise InputError(f"{run} {what}; name the directory of a run with a section sort, or with prune.budgets")
    if measured_for is not None:
        raise InputError(f"--measure  goes with a family; the members of the front in {run} are all measured")
    front = Front.load(run)
    return front, lambda: front


def _print(content: Mapping[str, Any], lines: list[str], json: bool) -> None:
    if json:
        print_json(content)
        return
    for line in lines:
        print(line)


def _measured(family: Family, budget: Budget) -> Family:
    """Return the family with what was measured as the run's recipe says."""
    from compress.runs.recipe import load_recipe
    from compress.sorted.timing import measure_for
    from evaluators.latency.measure import LatencyConfig

    recipe = family.folder.parent / "recipe.yaml"
    section = load_recipe(str(recipe), {}).section("latency") if recipe.is_file() else None
    return measure_for(family, budget, section or LatencyConfig())


def _line(members: Members, where: Path, entry: Mapping[str, Any]) -> str:
    """Return a member as one line: where it is, how good, and what it costs."""
    from compress.picking.budget import COSTS

    member = members.members[entry["member"]]
    figure = member.metrics.get(members.main.name)
    told = [f"{_label(members)} {figure:g}"] if figure is not None else []
    costs = [cost.show(entry["onnx_bytes"]) if key == "size" else member.shown(key) for key, cost in COSTS.items()]
    told += filter(None, costs)
    return "  ".join([str(where), *told, f"parity {entry['onnx_parity_max_rel']:.1e}"])


def _label(members: Members) -> str:
    """Return what lines call the figure that members are chosen by; its name, for a task that is not there."""
    from evaluators.tasks import tasks

    if members.main.task not in tasks:
        return members.main.name
    metrics = tasks.get(members.main.task).metrics
    return next((each.label for each in metrics if each.name == members.main.name), members.main.name)
