"""The command `compress pick`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.commands.options import JsonFlag, QuietFlag, print_json
from compress.core.errors import InputError
from compress.core.progress import set_quiet

if TYPE_CHECKING:
    from compress.sorted.budget import Budget
    from compress.sorted.family import Family


def pick(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory with a family, as `compress sort` leaves.")],
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
    """Write the best member of a family within a budget.

    As bundle and ONNX file, without any training or search; all budgets given hold together.
    """
    set_quiet(quiet)
    from compress.sorted.budget import Budget

    budget = Budget.parse({"latency": latency, "macs": macs, "params": params, "size": size})
    if all_fronts == bool(budget.limits):
        both = "both a budget and --all-fronts" if all_fronts else "no budget"
        raise InputError(f"pick: got {both}; give --latency, --macs, --params or --size, or else --all-fronts")
    if measure and not {"latency", "size"} & set(budget.limits):
        raise InputError("--measure  goes with --latency or --size; MACs and parameters are known of every member")
    from compress.sorted.family import Family
    from compress.sorted.pick import default_place, write_front, write_pick

    family = Family.load(run)
    if all_fronts:
        index, target = write_front(family, out), out or default_place(family)
        _print(index, [_line(family, target / each["file"], each) for each in index["members"]], json)
        return
    if measure:
        family = _measured(family, budget)
    found = write_pick(family, budget, out)
    _print(found, [_line(family, out or default_place(family, budget), found)], json)


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


def _line(family: Family, where: Path, entry: Mapping[str, Any]) -> str:
    """Return a member as one line: where it is, how good, and what it costs."""
    from compress.sorted.budget import COSTS

    member = family.members[entry["member"]]
    figure = member.metrics.get(family.main.name)
    told = [f"{_label(family)} {figure:g}"] if figure is not None else []
    for key, cost in COSTS.items():
        value = entry["onnx_bytes"] if key == "size" else member.cost(key)
        told += [cost.show(value)] if value is not None else []
    return "  ".join([str(where), *told, f"parity {entry['onnx_parity_max_rel']:.1e}"])


def _label(family: Family) -> str:
    """Return what lines call the figure that members are chosen by; its name, for a task that is not there."""
    from evaluators.tasks import tasks

    if family.main.task not in tasks:
        return family.main.name
    metrics = tasks.get(family.main.task).metrics
    return next((each.label for each in metrics if each.name == family.main.name), family.main.name)
