"""The section `quantize`: the exported file becomes one of fewer bits, where that is faster and good enough."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from compress.bundle import Bundle
from compress.core.atomic import replacing
from compress.core.errors import InputError, did_you_mean
from compress.core.globs import named
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.distill.finetune import named_after
from compress.export.onnx_file import SINGLE_FILE_BYTES
from compress.quantize.choose import WORTH, Candidate, Choice
from compress.quantize.config import QuantizeConfig
from compress.quantize.details import details_of, in_brief, verdict
from compress.quantize.float_file import FloatFile
from compress.quantize.images import images_of
from compress.quantize.judge import judge
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.recipe_file import Finding
from compress.runs.stage import MODEL_FILE, Act, Seconds, Stage, stages
from compress.runs.stages.rounded_training import SECTION, tuned, weights_of
from compress.training.estimate import estimate_seconds
from evaluators.datasets import Data
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.processor import processor
from evaluators.tasks import TaskConfig

FLOAT_FILE = "model.float.onnx"
POINTS = 0.5
"""Of accuracy that may be lost by default: what a CIFAR ResNet's accuracy moves between two seeds of a training."""

ROUNDING = 1.5
"""How many times as long a training takes whose forward passes round, on one core."""


@stages.register("quantize")
class Quantize(Stage[QuantizeConfig]):
    """The exported file with fewer bits, if it is faster on the target and good enough; else the float file stays."""

    order = 55
    Config = QuantizeConfig
    description = "INT8 or FP16 in place of the exported floats, where that is faster and good enough"

    def for_task(self, config: QuantizeConfig, task: TaskConfig) -> QuantizeConfig:
        """Return `config` with what may be lost: half a point of a metric in percent."""
        main = task.main_metric
        if config.max_drop is not None:
            return config
        if main.unit != "%":
            raise InputError(
                f"quantize.max_drop: say how much of {main.label} may be lost; got null; a number from 0 on"
            )
        return config.model_copy(update={"max_drop": POINTS})

    def check(self, config: QuantizeConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there is no file, or that there are no images to take ranges from and to judge by."""
        if sections.get("export", ...) is None:
            yield key, "makes another ONNX file of the exported one, so it needs an export section"
        data = sections.get("data")
        if data is not None and data.absent:
            yield key, "needs images to calibrate and to judge by, but data.name is none; leave the section out"
        latency = sections.get("latency")
        if isinstance(latency, LatencyConfig) and config.types == "int8" and latency.provider != "CPUExecutionProvider":
            yield (
                (*key, "types"),
                f"int8 files are written for CPUExecutionProvider; got latency.provider {latency.provider}; "
                "allowed with it: fp16",
            )

    def run(self, artifact: Artifact, config: QuantizeConfig, context: Context) -> Artifact:
        """Write the file of fewer bits to the stage's directory, and the float one beside the run's model.onnx."""
        bundle, data = artifact.loaded, context.data
        assert artifact.onnx is not None and data is not None and config.max_drop is not None  # see `check`
        latency = (context.recipe.section("latency") or LatencyConfig()).sized(bundle.preprocessing.input_size)
        images = images_of(data, config, context.recipe.seed)
        float_file, kept_file = context.run / FLOAT_FILE, context.directory / MODEL_FILE
        for stale in (float_file, kept_file):
            stale.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=context.directory) as folder:
            source = FloatFile.prepare(artifact.onnx, Path(folder), weights_of(bundle))
            choice = Choice(
                config, source, images, data.task, processor(latency.target), latency, config.max_drop, Path(folder)
            )
            tuning = tuned(choice, bundle, context)
            choice = tuning.choice
            kept, tried = choice.run()
            sentence = verdict(choice, kept, tried)
            say(sentence)
            details = details_of(choice, kept, tried)
            details["test"] = None if kept is None else _on_test(kept, artifact.onnx, data)
            details["finetuned"] = tuning.details
            context.details |= {
                "quantized": details,
                "notes": [*filter(None, [tuning.sentence]), sentence, *context.details.get("notes", [])],
                "in_report": {"quantized": in_brief(details)},
            }
            if kept is None:
                tuning.undo()
                return artifact
            for source_file, target in ((choice.source.path, float_file), (kept.file, kept_file)):
                with replacing(target) as file:
                    shutil.copyfile(source_file, file)
        return _kept(tuning.bundle, kept_file, details)

    def restore(self, artifact: Artifact, config: QuantizeConfig, context: Context) -> Artifact:
        """Return the file that was chosen, and its figures."""
        file = context.directory / MODEL_FILE
        if not file.is_file():
            return artifact
        details = json.loads((context.directory / "details.json").read_text(encoding="utf-8"))["quantized"]
        trained = (details.get("finetuned") or {}).get("kept")
        return _kept(Bundle.load(context.directory) if trained else artifact.loaded, file, details)

    def asks_target(self, config: QuantizeConfig) -> bool:
        """Return that it does: the file is one that is faster there."""
        return True

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield about how long it takes.

        Raises:
            InputError: there are too few training images, a layer that the recipe names is not there, or the model is
                too large; as all that is known before a training.
        """
        config: QuantizeConfig = act.config
        assert outlook.data is not None
        images = images_of(outlook.data, config, outlook.recipe.seed)
        _check_names(outlook.bundle, config.exclude)
        _check_size(outlook.bundle)
        if config.finetune is not None:
            if config.method == "auto":
                _check_convolutions(outlook.bundle)
            teacher = outlook.bundle.model if config.finetune.needs_teacher else None
            parts = outlook.bundle.model, images.learnt, config.finetune, outlook.device
            with named_after(SECTION, config.finetune):
                seconds = estimate_seconds(*parts, teacher=teacher, seed=outlook.recipe.seed)
            yield SECTION, ROUNDING * seconds * outlook.share_left + outlook.evaluation
        test = outlook.data.test
        judged = 0.0 if test is None else outlook.evaluation * config.judged / test.num_samples
        yield self.name, 4 * judged * outlook.share_left + 15


def _kept(bundle: Bundle, file: Path, details: Mapping[str, Any]) -> Artifact:
    """Return the float bundle with the file that was kept, and that file's figures; parity is the float one's alone."""
    measured = (details["test"] or {}).get("after", {})
    return Artifact(bundle, file, figures={**measured, "onnx_bytes": file.stat().st_size, "onnx_parity_max_rel": None})


def _on_test(kept: Candidate, float_file: Path, data: Data) -> dict[str, Any] | None:
    """Return the metrics of both files on the test images, which nothing was chosen by."""
    if data.test is None:
        return None
    before, after = (judge(file, data.test, data.task) for file in (float_file, kept.file))
    return {
        "images": data.test.num_samples,
        "before": before.metrics,
        "after": after.metrics,
        "agreement": after.agreement(before),
    }


def _check_names(bundle: Bundle, globs: tuple[str, ...]) -> None:
    """Raise InputError for a glob that names no layer of the model that multiplies: others are not made integers."""
    names = [name.rpartition(".")[0] for name, value in bundle.model.named_parameters() if value.ndim > 1]
    for glob in globs:
        if not any(named(name, glob) for name in names):
            raise InputError(
                f"quantize.exclude: the pattern {glob!r} matches no layer that multiplies; allowed are globs over the "
                f"names of such layers and of modules around them, such as {names[0]!r}{did_you_mean(glob, names)}"
            )


def _check_convolutions(bundle: Bundle) -> None:
    """Raise InputError where no static file will be tried: too few of the layers are convolutions."""
    layers = [module for module in bundle.model.modules() if isinstance(module, (nn.Linear, _ConvNd))]
    share = sum(isinstance(layer, _ConvNd) for layer in layers) / max(1, len(layers))
    if share < WORTH:
        raise InputError(
            f"quantize.finetune: trains for static files, and method auto tries none for a model of which {share:.0%} "
            "of the layers are convolutions; leave it out, or ask for method: static"
        )


def _check_size(bundle: Bundle) -> None:
    size = 4 * bundle.costs()["params"]
    if size > SINGLE_FILE_BYTES:
        raise InputError(
            f"quantize: the model's weights take {size / 1e9:.1f} GB, and are written apart from its ONNX file; "
            f"allowed up to {SINGLE_FILE_BYTES / 1e9:.1f} GB"
        )
