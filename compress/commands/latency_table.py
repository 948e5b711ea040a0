"""The command that measures a space's blocks, for searches that look latency up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.commands.options import (
    ChannelsFlag,
    ClassesFlag,
    JsonFlag,
    QuietFlag,
    SizeFlag,
    SpaceSetFlag,
    overrides_of,
    print_json,
)
from compress.core.errors import InputError
from compress.core.progress import set_quiet

if TYPE_CHECKING:
    from evaluators.latency.table import LatencyTable
    from spaces.space import Space


def latency_table(
    space: Annotated[str, typer.Option("--space", metavar="NAME", help="Name of a space (compress ls spaces).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON file to write.")],
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Options that the space has a name for.")
    ] = None,
    set_: SpaceSetFlag = None,
    classes: ClassesFlag = None,
    channels: ChannelsFlag = None,
    size: SizeFlag = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="local, ray:LABEL or a command.",
        ),
    ] = "local",
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads within an operator.")] = 1,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Images per run.")] = 1,
    statistic: Annotated[
        str, typer.Option("--statistic", metavar="NAME", help="Which time: least, p50, cpu_p50.")
    ] = "least",
    networks: Annotated[
        int, typer.Option("--networks", metavar="N", min=10, help="Networks to fit the table to.")
    ] = 100,
    check: Annotated[int, typer.Option("--check", metavar="N", min=5, help="Networks that tell its error.")] = 20,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="N", min=0, max=10, help="How long, of each network."),
    ] = 0.3,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the draw of networks.")] = 0,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Measure what a space's blocks take on a target.

    Times networks drawn at random, each two to four times, splits their times over their blocks, and says how far its
    predictions are off for networks that it was not fitted to. A command is one such as 'ssh host python3 -'; any
    target may be given as in a recipe, {ray: LABEL}. Interrupted, it goes on where it was. For a recipe:
    search.latency: {mode: table, table: FILE}.
    """
    set_quiet(quiet)
    from compress.core.atomic import check_file
    from evaluators.candidates.latency import SearchLatency
    from evaluators.candidates.latency_survey import survey

    check_file(output, "--output", ".json")
    opened = _open(space, preset, overrides_of(set_))
    opened.default_task = opened.task(classes, channels, size)
    settings = _settings(
        {
            "measure": {"target": _target(target), "threads": threads, "batch": batch, "seconds": seconds},
            "statistic": statistic,
        }
    )
    assert isinstance(settings, SearchLatency)
    folder = output.with_name(f".{output.name}.measured")
    table = survey(opened, settings.measure, settings.statistic, networks, check, seed, folder)
    table.save(output)
    shutil.rmtree(folder, ignore_errors=True)
    if json:
        print_json({"path": str(output), "blocks": len(table.blocks), "error": table.error.model_dump()})
    else:
        print(_line(output, table))


def _open(name: str, preset: str | None, options: dict[str, Any]) -> Space:
    from spaces.registry import create, open_preset

    return create(name, options) if preset is None else open_preset(name, preset, options)[0]


def _target(given: str) -> Any:
    """Return what a recipe writes for `--target`."""
    from compress.core.yaml_lines import parse_scalar

    if given.startswith("{"):
        try:
            return parse_scalar(given)
        except ValueError as error:
            raise InputError(f"--target  is not YAML; got {given!r}") from error
    if given.startswith("ray:"):
        return {"ray": given.removeprefix("ray:")}
    return given if given == "local" else {"command": given}


def _settings(values: dict[str, Any]) -> Any:
    from compress.core.problems import validated
    from evaluators.candidates.latency import SearchLatency

    return validated(SearchLatency, values, _sentence)


def _sentence(key: str, text: str) -> str:
    """Return what is wrong with a flag; without a key, with several together."""
    flag = key.removeprefix("measure.").partition(".")[0]
    return f"--{flag}  {text}" if flag else f"--statistic, --threads  {text}"


def _line(path: Path, table: LatencyTable) -> str:
    error = table.error
    return (
        f"{path}  {len(table.blocks)} blocks from {table.networks} networks  "
        f"off by {100 * error.mean:.1f} % (mean), {100 * error.median:.1f} % (median), {100 * error.max:.1f} % (worst) "
        f"on {error.networks} others  "
        f"rank correlation {error.spearman:.3f}"
    )
