"""The section `latency`: the ONNX files are timed on the target."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from compress.bundle import Bundle
from compress.core.atomic import write_json
from compress.core.onnx_parts import parts
from compress.core.yaml_lines import Path_
from compress.export.exporters import export
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import with_metrics
from compress.runs.recipe import Recipe
from compress.runs.recipe_file import Finding
from compress.runs.stage import Act, Seconds, Stage, acts_of, stages
from compress.runs.stages.export import export_seconds
from evaluators.latency.measure import Comparison, LatencyConfig, interleave, reach, record


class LatencyStageConfig(LatencyConfig):
    """How the files of a run are timed, and which."""

    stages: bool = Field(False, description="time the model after each stage that changed it, too")


Known = dict[str, Any]
"""What is known of a file besides its latency, by the names of METRICS."""


@stages.register("latency")
class Latency(Stage[LatencyStageConfig]):
    """The baseline and the winner timed in turns, one model by itself; figures and ratio are of one go.

    With `stages` the models between them, and in any case the networks that an earlier stage has left `beside`, take
    their turns in the same go; the same file, of a stage that left the model as it was, takes one turn.
    """

    order = 60
    Config = LatencyStageConfig
    description = "timing the ONNX files on the target"
    changes_model = False

    def check(self, config: LatencyStageConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there are no files to time."""
        if sections.get("export", ...) is None:
            yield key, "times ONNX files, so it needs an export section"

    def reach(self, config: LatencyStageConfig) -> None:
        """Raise where the target does not answer or has not the provider."""
        reach(config)

    def may_differ(self, key: str) -> bool:
        """Return whether `key` says how long a silent target is waited for."""
        return key == "target.timeout"

    def may_be_corrected(self, key: str, begun: bool, finished: Sequence[Act]) -> bool:
        """Return whether `key` says which target, and no other stage has asked it yet."""
        asked = any(act.stage.asks_target(act.config) for act in finished if act.config is not None)
        return key.partition(".")[0] == "target" and not asked

    def run(self, artifact: Artifact, config: LatencyStageConfig, context: Context) -> Artifact:
        """Time the artifact's ONNX file, the baseline's where that is another one, and those between and beside them.

        The report finds the figures of a stage in the detail `timed`, by the name of its folder, those of a network
        beside the run's by that of its file.
        """
        assert artifact.onnx is not None  # the recipe's checks refuse timing without an export
        files: dict[str, tuple[Path, Known]] = {"final": (artifact.onnx, {})}
        if context.compares:
            files = {"baseline": (context.baseline_onnx, {}), **files}
            files |= _between(context) if config.stages else {}
        beside = [each["onnx"] for earlier in context.earlier for each in earlier.get("beside", ())]
        files |= {name: (context.run / name, {}) for name in beside if name is not None}
        twin_of = twins({name: path for name, (path, _) in files.items()})
        timed = [name for name, twin in twin_of.items() if twin == name]
        paths = [files[name][0] for name in timed]
        if artifact.bundle is not None:  # for files that leave sizes open
            config = config.sized(artifact.bundle.preprocessing.input_size)
        found = interleave(paths, config) if len(paths) > 1 else Comparison([record(paths[0], config)], [])
        measured = dict(zip(timed, found.records, strict=True))
        compared = dict(zip(timed[1:], found.ratios, strict=True))
        records = {name: measured[twin] for name, twin in twin_of.items()}
        ratios = {name: compared.get(twin) for name, twin in twin_of.items()}
        if context.compares:
            context.details |= {
                "baseline_latency_ms": records["baseline"].latency_ms,
                "latency_ratio": ratios["final"],
            }
        context.details["timed"] = {
            name: {**known, "latency_ms": records[name].latency_ms, "latency_ratio": ratios.get(name)}
            for name, (_, known) in files.items()
            if name not in ("baseline", "final")
        }
        if context.compares and config.stages:
            winner = {name: artifact.metrics.get(name) for name in ("onnx_bytes", "onnx_parity_max_rel")}
            winner |= {"latency_ms": records["final"].latency_ms, "latency_ratio": ratios["final"]}
            context.details["timed"][_changes(context.recipe)[-1].folder] = winner
        context.details["records"] = {name: each.model_dump(exclude={"samples"}) for name, each in records.items()}
        samples = {f"{name}_ms": records[name].samples for name in ("baseline", "final") if name in records}
        write_json(context.directory / "samples.json", samples)
        latency_ms = records["final"].latency_ms
        if artifact.figures:  # the file is not the bundle's, but one of integers
            return replace(artifact, figures={**artifact.figures, "latency_ms": latency_ms})
        return replace(artifact, bundle=with_metrics(artifact.loaded, latency_ms=latency_ms))

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of the measurement, and of writing what is between."""
        config: LatencyStageConfig = act.config
        between = len(_changes(outlook.recipe)) - 1 if outlook.compares and config.stages else 0
        others = between + outlook.compares
        one = outlook.recipe.section("export").model_copy(update={"exporter": "torchscript"})  # auto is settled by then
        writing = between * export_seconds(outlook.bundle, one)
        yield "latency", writing + (1 + others) * config.seconds + others * config.max_seconds / 2


def twins(files: Mapping[str, Path]) -> dict[str, str]:
    """Return for each file the first that is the same, itself where there is none; what ratios are of has no twin."""
    found: dict[str, str] = {}
    for name, path in files.items():
        earlier = (other for other in found if other != "baseline")
        same = (other for other in earlier if filecmp.cmp(files[other], path, shallow=False))
        alone = len(parts(path)) == 1  # weights that lie beside it are not compared
        found[name] = next(same, name) if alone else name
    return found


def _changes(recipe: Recipe) -> list[Act]:
    """Return the acts of a run that change the model."""
    return [act for act in acts_of(recipe) if act.stage.changes_model]


def _between(context: Context) -> dict[str, tuple[Path, Known]]:
    """Write the model after each stage that changed it, but for the last, which is the winner; by the stages' folders.

    It is written as the winner was: with the exporter that was faster there.
    """
    config = context.recipe.section("export")
    chosen = next((each["export"]["exporter"] for each in reversed(context.earlier) if "export" in each), None)
    config = config.model_copy(update={"exporter": chosen or config.exporter})
    found: dict[str, tuple[Path, Known]] = {}
    for act in _changes(context.recipe)[:-1]:
        bundle = Bundle.load(context.directory.parent / act.folder)
        path = context.directory / "models" / f"{act.folder}.onnx"
        path.parent.mkdir(exist_ok=True)
        result = export(bundle.model, bundle.example_inputs(2), path, config, bundle.task, bundle.inputs)
        found[act.folder] = path, {"onnx_bytes": result.bytes, "onnx_parity_max_rel": result.parity_max_rel}
    return found
