"""Commands that do one thing with a bundle or an ONNX file: export, latency, eval."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.commands.options import DeviceFlag, JsonFlag, QuietFlag, SetFlag, overrides_of, print_json
from compress.core.errors import InputError
from compress.core.formatting import three_digits, times
from compress.core.progress import say, set_quiet
from compress.core.run_paths import misled

if TYPE_CHECKING:
    from compress.export.exporters import ExportResult


def export(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle or run directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="ONNX file to write.")],
    set_: SetFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write a bundle as ONNX.

    The file is checked against the module. Settings are those of a recipe: --set export.opset=18.
    """
    set_quiet(quiet)
    from compress.core.atomic import check_file
    from compress.export.exporters import ExportConfig
    from compress.runs.recipe_file import section

    config = section("export", ExportConfig, overrides_of(set_))
    check_file(output, "--output", ".onnx")
    from compress.bundle import Bundle
    from compress.export.exporters import export as export_onnx

    loaded = Bundle.load(bundle)
    found = export_onnx(loaded.model, loaded.example_inputs(2), output, config, loaded.task, loaded.inputs)
    facts = export_facts(found)
    if json:
        print_json(facts)
    else:
        print(export_line(facts))


def export_facts(result: ExportResult) -> dict[str, Any]:
    """Return what a command tells of an exported file."""
    found = result.to_dict()
    return {name: found[name] for name in ("path", "exporter", "opset", "bytes", "parity_max_rel")}


def export_line(facts: Mapping[str, Any]) -> str:
    """Return `export_facts` as one line."""
    size = f"{facts['bytes'] / 1e6:.2f} MB"
    parity = f"parity {facts['parity_max_rel']:.1e}"
    return f"{facts['path']}  {size}  opset {facts['opset']}  {facts['exporter']}  {parity}"


def latency(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="ONNX files, runs or bundles.")],
    set_: SetFlag = None,
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Time models with ONNX Runtime.

    Several are timed in turns, and compared with the first. Settings are those of a recipe: --set latency.threads=2.
    """
    set_quiet(quiet)
    from compress.runs.recipe_file import section
    from evaluators.latency.measure import Comparison, LatencyConfig, interleave, record

    config = section("latency", LatencyConfig, overrides_of(set_))
    with tempfile.TemporaryDirectory() as folder:
        files = [_onnx_of(model, Path(folder) / f"{index}.onnx") for index, model in enumerate(models)]
        found = interleave(files, config) if len(files) > 1 else Comparison([record(files[0], config)], [])
    rows: list[dict[str, Any]] = [
        {"model": str(model), "latency_ms": each.latency_ms} for model, each in zip(models, found.records, strict=True)
    ]
    for row, ratio in zip(rows[1:], found.ratios, strict=True):
        row["latency_ratio"] = ratio
    if json:
        print_json(rows)
        return
    for row in rows:
        print(_latency_line(row))


def _latency_line(row: dict[str, Any]) -> str:
    found, ratio = row["latency_ms"], row.get("latency_ratio")
    p50, p10, p90 = (three_digits(found[name]) for name in ("p50", "p10", "p90"))
    text = f"{row['model']}  p50 {p50} ms  p10 {p10}  p90 {p90}"
    if ratio is not None:
        low, high = map(times, ratio["ci95"])
        text += f"  {times(ratio['median'])} (95 % interval {low} to {high}) as fast as the first"
    if found["contended"]:
        cpu = "" if found["cpu_p50"] is None else f"; CPU p50 {three_digits(found['cpu_p50'])} ms"
        text += f"  contended: the machine was busy meanwhile{cpu}"
    return text


def _onnx_of(model: Path, temporary: Path) -> Path:
    """Return the ONNX file of `model`; a bundle without one is exported to `temporary`."""
    from spaces.checkpoint_file import SUFFIXES

    if model.suffix in SUFFIXES:
        raise InputError(f"MODEL  {model} holds weights alone; name an ONNX file, a bundle or a run directory")
    what = misled(model)
    if what is not None and not (model / "model.onnx").is_file():
        raise InputError(f"MODEL  {model} {what}")
    if not model.is_dir():
        return model
    if (model / "model.onnx").is_file():
        return model / "model.onnx"
    from compress.bundle import Bundle
    from compress.export.exporters import ExportConfig
    from compress.export.exporters import export as export_onnx

    loaded = Bundle.load(model)
    export_onnx(loaded.model, loaded.example_inputs(2), temporary, ExportConfig(), loaded.task, loaded.inputs)
    return temporary


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle, run directory or ONNX file.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", metavar="FILE", help="Recipe with the data (default: the run's).")
    ] = None,
    set_: SetFlag = None,
    device: DeviceFlag = "auto",
    quiet: QuietFlag = False,
    json: JsonFlag = False,
) -> None:
    """Measure accuracy on test images.

    Of a bundle, a run or an ONNX file, on the data of its run's recipe or of another.
    """
    set_quiet(quiet)
    from compress.runs.evaluation import evaluate_file
    from compress.runs.recipe import load_recipe
    from compress.runs.stages.quantize import FLOAT_FILE

    what = misled(bundle)
    if what is not None:
        raise InputError(f"BUNDLE  {bundle} {what}")
    loaded = load_recipe(recipe or _recipe_beside(bundle), overrides_of(set_))
    found = evaluate_file(bundle, loaded, device)
    if (bundle / FLOAT_FILE).is_file():
        say(f"these figures are the float model's; those of the run's ONNX file: compress eval {bundle / 'model.onnx'}")
    if json:
        print_json(found)
        return
    measured = ((metric, found[metric.name]) for metric in loaded.task.metrics)
    figures = [f"{metric.label} {value:.{metric.decimals(value)}f}" for metric, value in measured if value is not None]
    print("  ".join([str(bundle), *figures, f"{found['images']} images"]))


def _recipe_beside(bundle: Path) -> Path:
    """Return the recipe.yaml of the run that `bundle` lies in."""
    for folder in (bundle, *bundle.absolute().parents, *bundle.resolve().parents):
        if (folder / "recipe.yaml").is_file():
            return folder / "recipe.yaml"
    raise InputError(f"{bundle} lies in no run directory, so its data is not known; name a recipe with --recipe")
