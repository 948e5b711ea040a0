"""The command line; `compress --help` imports nothing heavier than typer."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from compress import __version__
from compress.commands import cache_teacher, discover, latency_table, measure, pick, rank, run, space
from compress.commands.layout import Command, Commands
from compress.commands.options import guarded
from compress.commands.stages import STAGE_COMMANDS

app = typer.Typer(
    name="compress",
    cls=Commands,
    help="Shrink a vision model to a budget and prove it with a measured ONNX file.",
    epilog="Example: compress prune --recipe dimap_swin.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

_COMMANDS: tuple[tuple[str, Callable[..., Any], str], ...] = (
    *((command.stage, command.function(), command.example) for command in STAGE_COMMANDS),
    ("rank", rank.rank, "compress rank --recipe spos_mobilenetv3_digits.yaml --against 8 --scores scores.csv"),
    ("pick", pick.pick, "compress pick runs/sortednet_mobilenetv3_digits --macs 0.5"),
    ("cache-teacher", cache_teacher.cache_teacher, "compress cache-teacher --recipe meal_v2_cifar10.yaml"),
    ("run", run.run, "compress run --recipe dimap_swin.yaml --set prune.sparsity=0.35 --out runs/light"),
    ("plan", run.plan, "compress plan --recipe dimap_swin_channels.yaml --set prune.budget.macs=0.7"),
    ("inspect", discover.inspect, "compress inspect resnet18"),
    ("export", measure.export, "compress export runs/dimap_swin -o small.onnx"),
    ("latency", measure.latency, "compress latency runs/dimap_swin/stages/01-dense/model.onnx runs/dimap_swin"),
    (
        "latency-table",
        latency_table.latency_table,
        "compress latency-table --space mobilenetv3 --preset tiny -o table.json",
    ),
    ("eval", measure.evaluate, "compress eval runs/dimap_swin"),
    ("report", run.report, "compress report runs/dimap_swin"),
    ("compare", run.compare, "compress compare runs/dimap_swin runs/light"),
    ("space", space.space, "compress space mobilenetv3 --sample --draw network.svg"),
    ("ls", discover.ls, "compress ls models 'timm:*swin*'"),
    ("cat", discover.cat, "compress cat dimap_swin.yaml --resolved"),
    ("cp", discover.cp, "compress cp dimap_swin.yaml mine.yaml"),
    ("validate", discover.validate, "compress validate dimap_swin.yaml"),
    ("schema", discover.schema, "compress schema > recipe.schema.json"),
    ("doctor", discover.doctor, "compress doctor"),
)
for _name, _function, _example in _COMMANDS:
    app.command(_name, cls=Command, epilog=f"\b\nExample: {_example}")(guarded(_function))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the entry point of the `compress` script."""
    # Threads that wait for each other sleep instead of spinning: on a busy machine that is several times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a terminal without × and → shows ? in their place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    _end_as_by_ctrl_c()
    app(prog_name="compress")


def _end_as_by_ctrl_c() -> None:
    """Let SIGTERM, which `kill`, `timeout` and batch systems send, end this process as Ctrl-C does: with a sentence."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    own = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() == own:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a fork of this process, which its parent wants gone
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


if __name__ == "__main__":  # `python -m compress.cli`, which would do nothing without a word
    main()
