"""The section `ladder`: a small network is set beside the frozen model; what trains afterwards is that alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from compress.bundle import Bundle
from compress.core.config import Config
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.sections import NameOf
from compress.core.tensors import moved
from compress.criteria import criterion_unfit, unit_criteria
from compress.prune.narrow import first_batches
from compress.prune.side import side_plan
from compress.prune.structure import Setting
from compress.prune.structure_config import StructureConfig
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import measured
from compress.runs.stage import Act, Seconds, Stage, stages
from compress.transforms.ladder import Ladder as LadderNet
from compress.transforms.ladder import LadderTransform
from evaluators.datasets import Data
from evaluators.tasks import Task


class LadderConfig(Config):
    """How narrow the network beside the model is, and what it starts from."""

    reduction: int = Field(4, ge=2, description="widths of the model over those of the network beside it")
    criterion: Annotated[str, NameOf(unit_criteria)] = Field(
        "magnitude", description="which of the model's units the network beside it starts with; hessian: Fisher"
    )
    calibration_batches: int = Field(4, ge=1, description="training batches for criteria that need data")

    def unfit(self, task: Task) -> str | None:
        """Return that the criterion needs what the task does not have."""
        return criterion_unfit(self.criterion, task)


@stages.register("ladder")
class Ladder(Stage[LadderConfig]):
    """Ladder side-tuning: training that never goes back through the model, for little memory; inference costs more."""

    order = 35
    Config = LadderConfig
    description = "a small network beside the frozen model, which then learns alone"

    def check_model(self, config: LadderConfig, bundle: Bundle) -> None:
        """Raise where the model's features do not go in a row, or cannot be narrowed."""
        _transform(bundle, config.model_copy(update={"criterion": "magnitude"}), None, "cpu", 0)

    def run(self, artifact: Artifact, config: LadderConfig, context: Context) -> Artifact:
        """Freeze the model and set the side network beside it."""
        bundle = artifact.loaded
        transform = _transform(bundle, config, context.data, context.device, context.recipe.seed)
        found, context.details["notes"] = _beside(bundle, transform)
        return Artifact(measured(found, context))

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of one evaluation."""
        yield "ladder", outlook.evaluation

    def foresee(self, bundle: Bundle, config: LadderConfig, outlook: Outlook) -> Bundle:
        """Return the bundle with the side network, and note what it costs."""
        transform = _transform(bundle, config, outlook.data, outlook.device, outlook.recipe.seed)
        found, notes = _beside(bundle, transform)
        outlook.notes += notes
        return found


def _transform(bundle: Bundle, config: LadderConfig, data: Data | None, device: str, seed: int) -> LadderTransform:
    """Return the transform; raises InputError where the model is none for it."""
    if any(isinstance(module, LadderNet) for module in bundle.model.modules()):
        raise InputError("ladder: the model has a network beside it already")
    inputs = bundle.example_inputs()
    structure = StructureConfig.model_validate({"kind": "structure", "criterion": config.criterion, "ratio": 0.5})
    task = bundle.task if data is None else data.task
    setting = Setting(first_batches(data, config.calibration_batches), device, seed, task=task)
    try:
        with on_device(bundle.model, device):
            on = moved(inputs, device)
            graph = bundle.known.graph(bundle.model, on)
            transform = LadderTransform(plan=side_plan(bundle.model, graph, on, config.reduction, structure, setting))
        transform.apply(copy.deepcopy(bundle.model), inputs)
    except InputError as error:
        raise InputError(f"ladder: no network can stand beside {type(bundle.model).__name__}: {error}") from error
    return transform


def _beside(bundle: Bundle, transform: LadderTransform) -> tuple[Bundle, list[str]]:
    """Return the bundle with the network beside its model, and what that costs, in sentences."""
    before = bundle.costs()
    masks = None if bundle.masks is None else {f"backbone.{name}": mask for name, mask in bundle.masks.items()}
    model = transform.apply(bundle.model, bundle.example_inputs())
    found = replace(bundle.transformed(transform, model), masks=masks)
    after = found.costs()
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return found, [
        f"{learning:,} parameters beside the model learn; its own {before['params']:,} are frozen, and training keeps "
        "no activations of theirs.",
        f"The network beside it stays: {after['macs'] / before['macs'] - 1:+.0%} MACs, and more latency. It saves "
        "memory in training, nothing afterwards.",
    ]
