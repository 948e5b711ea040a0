"""The section `export`: the winner is written as ONNX."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compress.bundle import Bundle
from compress.core.atomic import replacing
from compress.core.errors import CompressError, InputError
from compress.core.onnx_parts import parts
from compress.core.progress import hushed
from compress.export.exporters import COMPARED_SECONDS, ExportConfig, NotWritable, export
from compress.export.samples import samples_of
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import exported
from compress.runs.stage import Act, Seconds, Stage, acts_of, stages

SECONDS_PER_LAYER = 0.06  # one exporter, its checks included: swin_tiny 7 s, resnet18 2 s on one core


@stages.register("export")
class Export(Stage[ExportConfig]):
    """The winner as ONNX, checked against the module."""

    order = 50
    Config = ExportConfig
    description = "writing ONNX files and checking them"
    changes_model = False

    def check_model(self, config: ExportConfig, bundle: Bundle) -> None:
        """Raise InputError where the file is to leave sizes open, and the model takes no others."""
        samples_of(bundle.example_inputs(), bundle.inputs, config.dynamic_size).other_sizes(bundle.model)

    def try_out(self, config: ExportConfig, bundle: Bundle) -> None:
        """Raise InputError where no exporter writes the model."""
        names = ("torchscript", "dynamo") if config.exporter == "auto" else (config.exporter,)  # the quick one first
        causes = []
        with TemporaryDirectory() as folder, hushed():
            for name in names:
                one = config.model_copy(update={"exporter": name})
                try:
                    export(bundle.model, bundle.example_inputs(2), Path(folder) / name, one, bundle.task, bundle.inputs)
                except NotWritable as error:
                    causes.append(str(error).partition(" could not be exported: ")[2])
                    continue
                except CompressError:
                    pass  # such as outputs that differ, which may be for the weights that it starts from
                return
        raise InputError(f"export: the model cannot be written as ONNX, trained or not: {'; '.join(causes)}")

    def run(self, artifact: Artifact, config: ExportConfig, context: Context) -> Artifact:
        """Write the model to the run's model.onnx; where the baseline's file is of this very model, take that."""
        same = artifact.onnx
        if same is not None and len(parts(same)) == 1:
            with replacing(context.model_file) as file:
                shutil.copyfile(same, file)
            return Artifact(artifact.loaded, context.model_file)
        return Artifact(exported(artifact.loaded, config, context.model_file, context), context.model_file)

    def restore(self, artifact: Artifact, config: ExportConfig, context: Context) -> Artifact:
        """Return the bundle and the run's model.onnx."""
        return replace(super().restore(artifact, config, context), onnx=context.model_file)

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of writing and checking one file; nothing where the baseline's is taken, see `run`."""
        before = [each.stage for each in acts_of(outlook.recipe) if each.stage.order < self.order]
        if not outlook.compares or any(stage.changes_model for stage in before):
            yield "export", export_seconds(outlook.bundle, act.config)


def export_seconds(bundle: Bundle, config: ExportConfig) -> float:
    """Return about how long it takes to write a model as ONNX and check it; `auto` does twice, and times both files."""
    layers = sum(1 for module in bundle.model.modules() if not any(module.children()))
    writing = SECONDS_PER_LAYER * layers
    return 2 * writing + COMPARED_SECONDS / 2 if config.exporter == "auto" else writing
