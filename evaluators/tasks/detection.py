"""Detection: boxes around things in an image, each with the class of what it holds and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from compress.core.errors import Diverged, InputError
from compress.core.modes import training_flow
from compress.core.tensors import Inputs
from evaluators.datasets.batch import Batch
from evaluators.tasks.detection_file import (
    FOUND,
    NEAR,
    WithPostProcessing,
    as_found,
    of_heads,
    paired,
    substitutes,
)
from evaluators.tasks.task import Meter, Metric, Shape, Task, TaskConfig, check_learnable, tasks

MAP = Metric("map", "maximize", "mAP", "Mean average precision", "%", "points")
MAP50 = Metric("map50", "maximize", "mAP50", "mAP at an IoU of 0.50", "%", "points")
MAP75 = Metric("map75", "maximize", "mAP75", "mAP at an IoU of 0.75", "%", "points")
LOSS = Metric("loss", "minimize", "loss", "Loss", digits=4, worst=1e6)

_CLASSES = (
    ("roi_heads.box_predictor.cls_score", "out_features"),
    ("head.classification_head", "num_classes"),
    ("head.classification_head", "num_columns"),
)
"""Layers of torchvision's detectors, and what of them says how many classes there are."""


@tasks.register("detection")
class DetectionConfig(TaskConfig):
    """Boxes with classes and scores, in torchvision's convention.

    Models take a list of images (C, H, W). In training they take targets as well and return a dictionary of losses, in
    evaluation a list of dictionaries with boxes (M, 4) in pixels x1, y1, x2, y2, labels (M,) from 1 on, and scores.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (MAP, MAP50, MAP75, LOSS)
    targets: ClassVar[str | None] = "boxes"
    name: Literal["detection"] = Field("detection", description="what the model is for")
    loss_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="how much each loss of the model counts, by its name; 1 where none is given"
    )

    def bind(self, num_outputs: int, input_size: Shape) -> Detection:
        """Return the task for `num_outputs` classes, the background among them."""
        return Detection(num_outputs, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        """Return 0 for a list of findings, which do not show how many classes there are; None for anything else."""
        return 0 if _are_found(outputs) else None

    def width_of(self, model: nn.Module) -> int | None:
        """Return the `num_classes` of the model, or what the heads of torchvision's detectors have as that."""
        places = ("", "num_classes"), *_CLASSES
        found = (getattr(_at(model, layer), name, None) for layer, name in places)
        return next((each for each in found if isinstance(each, int)), None)


class Detection(Task):
    """The losses that the model itself gives in training; COCO's mean average precision."""

    form = "a dictionary of boxes, labels and scores for every image"
    counted = "classes, the background among them"
    input_name = "images"
    gives_tensor = False
    fixed_batch = True

    config: DetectionConfig

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """map, map50, map75: in evaluation there is no loss."""
        return (MAP, MAP50, MAP75)

    def arguments(self, images: Tensor) -> Inputs:
        """Return the images (N, C, H, W) as a list."""
        return list(images.unbind())

    def forward(self, model: Callable[..., Any], batch: Batch) -> Any:
        """Return the losses of a model in training, which is handed the targets, else what it finds.

        Raises:
            InputError: a target has a class that the model cannot have, or the model takes no targets.
        """
        if not getattr(model, "training", False):
            return super().forward(model, batch)
        targets = [self._learnable(target) for target in batch.targets]
        try:
            return model(batch.inputs, targets)
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            raise InputError(f"model: in training it has to take images and targets; {error}") from error

    def _learnable(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a target without the boxes around crowds, which count in evaluation alone."""
        self.check_labels(target["labels"])
        kept = {name: value for name, value in target.items() if name not in ("iscrowd", "area")}
        if "iscrowd" in target:
            single = ~target["iscrowd"].bool()
            kept |= {name: value[single] for name, value in kept.items() if value.shape[:1] == single.shape}
        return kept

    def check_labels(self, labels: Tensor) -> None:
        """Raise InputError for a class that is the background, or that models of this task do not have."""
        least, most = (int(labels.min()), int(labels.max())) if len(labels) else (1, 1)
        if least < 1 or (self.num_outputs and most >= self.num_outputs):
            allowed = f"1 to {self.num_outputs - 1}" if self.num_outputs else "1 and up"
            raise InputError(
                f"data: a box has the class {least if least < 1 else most}; allowed: {allowed} (0 is the background)"
            )

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Return the sum of the model's losses, each with its weight.

        Raises:
            InputError: the model gave no losses, or none of a name that has a weight.
        """
        losses = outputs if isinstance(outputs, Mapping) else {}
        if not losses or not all(isinstance(each, Tensor) and each.numel() == 1 for each in losses.values()):
            raise InputError(
                f"model: in training it returns {_told(outputs)}; task detection needs a dictionary of losses from "
                "model(images, targets), as torchvision's detectors give it"
            )
        weights = self.config.loss_weights
        if unknown := sorted(set(weights) - set(losses)):
            raise InputError(
                f"task.loss_weights.{unknown[0]}: the model has no such loss; allowed: {', '.join(losses)}"
            )
        return torch.stack([weights.get(name, 1.0) * each.reshape(()) for name, each in losses.items()]).sum()

    @contextmanager
    def losing(self, model: nn.Module) -> Iterator[None]:
        """Run a block with the control flow of training: in evaluation detectors have no loss."""
        with training_flow(model):
            model.training = True  # one without layers, too
            yield

    def check_trainable(self, model: nn.Module) -> None:
        """Raise InputError where a model in training gives no losses to learn from for one image with one box."""
        image = torch.rand(self.input_size, generator=torch.Generator().manual_seed(0))
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * torch.tensor([image.shape[2], image.shape[1]] * 2)
        batch = Batch([image], [{"boxes": box, "labels": torch.tensor([1])}])
        where = next(model.parameters(), box).device
        with self.losing(model), torch.enable_grad():
            moved = batch.to(where)
            check_learnable(self.loss(self.forward(model, moved), moved, model), model)

    def tensor(self, outputs: Any) -> Tensor:
        """Raise InputError: boxes of two models are no two tensors of one shape."""
        raise InputError("task detection has no tensor that two models could be compared by")

    def for_file(self, model: nn.Module, post_processing: bool = True) -> nn.Module:
        """Return the detector from images (N, C, H, W) to what it finds, or to what its heads give."""
        return WithPostProcessing(model) if post_processing else of_heads(model)

    def file_inputs(self, inputs: Inputs) -> Inputs:
        """Return a list of images as one tensor (N, C, H, W)."""
        return torch.stack(inputs) if isinstance(inputs, list) else inputs

    def substitutes(self, model: nn.Module, expected: Sequence[Mapping[str, Tensor]]) -> list[nn.Module]:
        """Return the heads, and the detector without a threshold, where nothing is found or all scores are alike."""
        return substitutes(model, expected)

    def paired(
        self, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return boxes of a file and of the model, each at the place of its partner."""
        return paired(given, expected)

    def tolerance(self, name: str, usual: float) -> float:
        """Return as much for boxes and scores as makes partners: exponentials and suppression amplify rounding."""
        return max(usual, NEAR) if name in FOUND else usual

    def outputs_in(self, names: Sequence[str]) -> Sequence[str]:
        """Return all of them."""
        return names

    def of_file(self, outputs: Mapping[str, Tensor], samples: int) -> Any:
        """Return boxes, labels and scores of each image."""
        return as_found(outputs, samples)

    def meter(self) -> Meter:
        """Return what COCO's evaluation makes of the findings."""
        return _Meter(self)


class _Meter(Meter):
    """COCO's mean average precision (0-100) through torchmetrics and pycocotools, of at most 100 boxes an image."""

    def __init__(self, task: Detection) -> None:
        from torchmetrics.detection import MeanAveragePrecision

        self.task, self.wanted = task, 0
        self.precision = MeanAveragePrecision(backend="pycocotools")
        self.precision.warn_on_many_detections = False

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in a list of boxes, labels and scores, one of each image."""
        if not _are_found(outputs) or len(outputs) != len(batch):
            raise InputError(
                f"the model returned {_told(outputs)} for {len(batch)} images; task detection needs {self.task.form}"
            )
        for found, target in zip(outputs, batch.targets, strict=True):
            if not all(bool(torch.isfinite(found[name]).all()) for name in ("boxes", "scores")):
                raise Diverged("the model's boxes or scores are NaN or infinite: its training diverged")
            self.task.check_labels(target["labels"])
            self.wanted += int((~target.get("iscrowd", torch.zeros_like(target["labels"])).bool()).sum())
            self.precision.update([_on_cpu(found, FOUND)], [_on_cpu(target, ("boxes", "labels", "iscrowd", "area"))])

    def compute(self) -> dict[str, float | None]:
        """Return the metrics; no loss, which detectors do not give in evaluation.

        Raises:
            InputError: none of the images has a box.
        """
        if not self.wanted:
            raise InputError("data: no image that the model is judged by has a box, so there is nothing to find")
        figures = self.precision.compute()
        names = {"map": "map", "map50": "map_50", "map75": "map_75"}
        found: dict[str, float | None] = {name: 100 * float(figures[theirs]) for name, theirs in names.items()}
        return found | {"loss": None}


def _at(model: nn.Module, layer: str) -> nn.Module | None:
    """Return the layer of this name, None where there is none."""
    try:
        return model.get_submodule(layer)
    except AttributeError:
        return None


def _on_cpu(values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the plain tensors of these names, those that are there."""
    plain = {name: values[name].detach().as_subclass(Tensor).cpu() for name in names if name in values}
    return {name: value.float() if value.is_floating_point() else value for name, value in plain.items()}


def _are_found(outputs: Any) -> bool:
    """Return whether `outputs` are boxes, labels and scores of images, as many of each."""
    return isinstance(outputs, list | tuple) and all(
        isinstance(each, Mapping)
        and all(isinstance(each.get(name), Tensor) for name in FOUND)
        and each["boxes"].shape == (len(each["scores"]), 4)
        and each["labels"].shape == each["scores"].shape
        for each in outputs
    )


def _told(outputs: Any) -> str:
    """Return what a model gave, in words."""
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    keys = f" with the keys {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    return f"a {type(outputs).__name__}{keys}"
