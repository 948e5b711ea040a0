"""The section `latency`: the ONNX files are timed on the target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compress.core.atomic import write_json
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import with_metrics
from compress.runs.recipe_file import Finding
from compress.runs.stage import Act, Seconds, Stage, stages
from evaluators.latency.measure import LatencyConfig, interleave, record


@stages.register("latency")
class Latency(Stage[LatencyConfig]):
    """The baseline and the winner timed in turns, one model by itself; figures and ratio are of one go."""

    order = 60
    Config = LatencyConfig
    description = "timing the ONNX files on the target"
    changes_model = False

    def check(self, config: LatencyConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there are no files to time."""
        if sections.get("export", ...) is None:
            yield key, "times ONNX files, so it needs an export section"

    def run(self, artifact: Artifact, config: LatencyConfig, context: Context) -> Artifact:
        """Time the artifact's ONNX file, and the baseline's where that is another one."""
        assert artifact.onnx is not None  # the recipe's checks refuse timing without an export
        if context.compares:
            both = interleave([context.baseline_onnx, artifact.onnx], config)
            records = dict(zip(("baseline", "final"), both.records, strict=True))
            context.details |= {"baseline_latency_ms": records["baseline"].latency_ms, "latency_ratio": both.ratios[0]}
        else:
            records = {"final": record(artifact.onnx, config)}
        context.details["records"] = {name: each.model_dump(exclude={"samples"}) for name, each in records.items()}
        write_json(context.directory / "samples.json", {f"{name}_ms": each.samples for name, each in records.items()})
        return replace(artifact, bundle=with_metrics(artifact.loaded, latency_ms=records["final"].latency_ms))

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of the measurement."""
        config: LatencyConfig = act.config
        yield "latency", 2 * config.seconds + config.max_seconds / 2 if outlook.compares else config.seconds
