"""The command that shows, counts, builds and draws search spaces and their architectures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.commands.measure import export_facts, export_line
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
    from evaluators.tasks import Task
    from spaces.architecture import Architecture
    from spaces.space import Space


def space(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="Name of a space (compress ls spaces), or nni:PACKAGE.MODULE.CLASS.")
    ],
    arch: Annotated[
        Path | None, typer.Option("--arch", metavar="FILE", help="Architecture: a file of --save, choices or a code.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Architecture: one of all, drawn with --seed.")] = False,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Architecture or options that the space names.")
    ] = None,
    set_: SpaceSetFlag = None,
    classes: ClassesFlag = None,
    channels: ChannelsFlag = None,
    size: SizeFlag = None,
    count: Annotated[bool, typer.Option("--count", help="Print how many architectures there are.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Build the architecture and write it as ONNX.")
    ] = None,
    draw: Annotated[Path | None, typer.Option("--draw", metavar="FILE", help="Write a picture as SVG.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write the architecture as JSON, for --arch.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of --sample and of weights.")] = 0,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Show a search space, or an architecture of it.

    A space: its options, decisions, presets and size. An architecture (--arch, --sample, --preset): its layers,
    parameters and MACs; it can be exported with random weights, drawn and saved.
    """
    set_quiet(quiet)
    files = {"--export": export, "--draw": draw, "--save": save}
    if count:
        _refuse({"--arch": arch, "--sample": sample, **files}, "--count counts a whole space; leave out {}")
    opened, point = _open(space, arch, sample, preset, overrides_of(set_), seed)
    if count:
        _print_count(opened, json)
        return
    if point is None:
        needs = "{} needs an architecture; add --sample, --arch FILE, or a --preset that is one"
        _refuse({"--export": export, "--save": save}, needs)
    for flag, path in files.items():
        _check_file(path, flag)
    _show(opened, point, (classes, channels, size), (export, draw, save), seed, json)


def _refuse(flags: dict[str, Any], sentence: str) -> None:
    """Raise InputError with the first of `flags` that was given in `sentence`."""
    for flag, value in flags.items():
        if value not in (None, False):
            raise InputError(sentence.format(flag))


def _open(
    name: str, arch: Path | None, sample: bool, preset: str | None, options: dict[str, Any], seed: int
) -> tuple[Space, Architecture | None]:
    """Return the space with its options, and the architecture that the flags name or draw, if any."""
    import random

    from spaces.registry import create, open_preset, presets, read_architecture

    if arch is not None and sample:
        raise InputError("--arch and --sample both name an architecture; leave one out")
    if preset is not None:
        opened, point = open_preset(name, preset, options)
        if point is None:
            options = {**presets(name)[preset].options, **options}
        elif arch is not None or sample:
            other = "--sample" if sample else "--arch"
            raise InputError(f"--preset {preset} is an architecture, and {other} names another; leave one out")
        else:
            return opened, point
    if arch is not None:
        return read_architecture(arch, name, options)
    opened = create(name, options)
    return opened, opened.sample(random.Random(seed)) if sample else None


def _check_file(path: Path | None, flag: str) -> None:
    """Raise InputError where `path` cannot become the file that `flag` writes."""
    from compress.core.atomic import check_file

    if path is None:
        return
    if flag == "--draw" and path.suffix != ".svg":
        raise InputError(f"--draw  {path}: pictures are written as SVG; name a file that ends in .svg")
    check_file(path, flag, {"--save": ".json", "--export": ".onnx", "--draw": ".svg"}[flag])


def _print_count(opened: Space, json: bool) -> None:
    from spaces.decision_lines import about

    number = opened.count()
    if json:
        print_json({"space": opened.name, "count": number})
    else:
        print(f"{number}  {about(number)}" if number >= 10**6 else number)


def _show(
    opened: Space,
    point: Architecture | None,
    sizes: tuple[int | None, int | None, int | None],
    files: tuple[Path | None, Path | None, Path | None],
    seed: int,
    json: bool,
) -> None:
    """Print what `opened` or its `point` is; write what was asked for once nothing of the input can be wrong."""
    from compress.core.atomic import write_json, write_text
    from spaces.summary import describe_architecture, describe_space, show_architecture, show_space

    (classes, channels, size), (export, draw, save) = sizes, files
    task = opened.task(classes, channels, size if point is None else opened.input_size(point, size))
    facts = describe_space(opened, task) if point is None else describe_architecture(opened, point, task)
    lines = [show_space(facts, opened) if point is None else show_architecture(facts)]
    picture = opened.draw(point, size) if draw else ""
    if export and point is not None:
        facts["onnx"] = _export(opened, point, task, export, seed)
        lines.append(export_line(facts["onnx"]))
    if draw:
        write_text(draw, picture)
        facts["drawing"] = str(draw)
    if save and point is not None:
        write_json(save, opened.to_dict(point))
        facts["saved"] = str(save)
    if json:
        print_json(facts)
    else:
        print("\n".join([*lines, *(facts[name] for name in ("drawing", "saved") if name in facts)]))


def _export(opened: Space, point: Architecture, task: Task, path: Path, seed: int) -> dict[str, Any]:
    """Build `point` with weights from `seed`, write it to `path` and return what the file is."""
    import torch

    from compress.export.exporters import export

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = opened.build(point, task)
    images = torch.zeros(2, task.in_chans, task.img_size, task.img_size)
    return export_facts(export(module, images, path, task=task))
