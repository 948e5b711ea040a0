"""The models of torchvision: one file for the builders of each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.core.errors import InputError
from evaluators.tasks import Task, TaskConfig
from evaluators.tasks import tasks as known_tasks
from spaces.shapes import wished
from spaces.sources.construct import reserved
from spaces.sources.torchvision.classification import CLASSIFICATION
from spaces.sources.torchvision.detection import DETECTION
from spaces.sources.torchvision.kind import Kind
from spaces.sources.torchvision.segmentation import SEGMENTATION
from spaces.zoo import BuiltModel, ModelConfig, Source, agree, sources

KINDS: dict[str, Kind] = {kind.task: kind for kind in (CLASSIFICATION, SEGMENTATION, DETECTION)}
"""Builders by the task that their models are for."""


@sources.register("torchvision")
class TorchvisionSource(Source):
    """torchvision's classifiers, networks for segmentation and detectors; they take three channels."""

    published = sized = True

    def names(self) -> Sequence[str]:
        """Return torchvision's lists of models."""
        return [name for kind in KINDS.values() for name in kind.names()]

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the name, and arguments that other keys stand for."""
        if problem := _not_here(config.name, self.names()):
            yield "name", problem
        else:
            yield from super().problems(config)
        yield from reserved(config)

    def task_of(self, config: ModelConfig) -> TaskConfig:
        """Return the task that torchvision has the model for."""
        return known_tasks.get(_kind_of(config).task)()  # type: ignore[call-arg]

    def misfit(self, config: ModelConfig, task: TaskConfig) -> str | None:
        """Return that the model is for another of the tasks that torchvision has models for."""
        own = _kind_of(config).task
        if task.name not in KINDS or task.name == own:
            return None
        return f"{config.name!r} is for task {own}, the recipe for {task.name}; say task: {{name: {own}}}"

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build it with `num_classes`, and with the image size where the constructor takes one."""
        problem = self.misfit(config, task.config)
        if problem:
            raise InputError(f"model.name: {problem}")
        agree("model.name", 3, wished(task.in_chans), "channels (torchvision's models take 3)")
        return _kind_of(config).build(config, task)


OTHERS = {
    "quantization": "is made for integers of torch's own; choose the one without 'quantized_' and the section quantize",
    "video": "takes videos (channels, frames, height, width), which no data set here has",
    "optical_flow": "takes two images, which no task here has",
    "detection": "learns from more than boxes, which no task here has",
}
"""By torchvision's module: why some of its models are none of this source's."""


def _not_here(name: str, known: Sequence[str]) -> str | None:
    """Return why a model of torchvision's is none of this source's, and how to have it; None for any other name."""
    import torchvision

    if name in known or name not in torchvision.models.list_models():
        return None
    builder = torchvision.models.get_model_builder(name)
    kind = next((each for each in OTHERS if f".{each}." in builder.__module__), None)
    if kind is None:
        return None
    told = f"torchvision's {name!r} {OTHERS[kind]}"
    if kind == "quantization":
        return told
    where = f"source: python, name: {builder.__module__}:{builder.__name__}"
    if kind == "detection":
        return (
            f"{told}; {where}, kwargs: {{weights_backbone: null}} and task: {{name: detection}} prune, export and "
            "measure what finds boxes in it, without training"
        )
    return f"{told}; {where}, model.inputs and task: {{name: none}} prune, export and measure it, without training"


def _kind_of(config: ModelConfig) -> Kind:
    return next((kind for kind in KINDS.values() if config.name in kind.names()), CLASSIFICATION)
