"""Semantic segmentation: one class of several for every pixel."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Generator, Tensor, nn

from compress.core.errors import Diverged, InputError
from evaluators.datasets.batch import Batch
from evaluators.tasks.task import Meter, Metric, Shape, Task, TaskConfig, tasks

MAIN_KEYS = ("out", "logits")
"""What dictionaries call the logits: torchvision's networks, transformers'."""

MIOU = Metric("miou", "maximize", "mIoU", "Mean IoU", "%", "points")
PIXEL_ACCURACY = Metric("pixel_accuracy", "maximize", "pixels right", "Pixel accuracy", "%", "points")
# its worst is where float32 cannot tell the right class's probability from 0
LOSS = Metric("loss", "minimize", "loss", "Loss", digits=4, worst=87.3)


@tasks.register("segmentation")
class SegmentationConfig(TaskConfig):
    """One class of several for every pixel: models give logits (N, classes, h, w), targets are masks (N, H, W)."""

    metrics: ClassVar[tuple[Metric, ...]] = (MIOU, PIXEL_ACCURACY, LOSS)
    targets: ClassVar[str | None] = "masks"
    name: Literal["segmentation"] = Field("segmentation", description="what the model is for")
    ignore_index: int = Field(255, ge=-1, le=65535, description="number in masks of pixels that do not count")
    dice: float = Field(0.0, ge=0, description="weight of the Dice loss beside the cross entropy")
    class_weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        None, min_length=1, description="weights of the classes in the cross entropy; null: all count alike"
    )
    auxiliary: float = Field(0.5, ge=0, description="weight of the loss of each auxiliary head in training")

    @field_validator("class_weights")
    @classmethod
    def _some(cls, weights: list[float] | None) -> list[float] | None:
        if weights is not None and not any(weights):
            raise ValueError("all are 0, so no pixel counts; at least one has to be above")
        return weights

    def bind(self, num_outputs: int, input_size: Shape) -> Segmentation:
        """Return the task for `num_outputs` classes; InputError where there is another number of class weights."""
        weights = self.class_weights
        if weights is not None and num_outputs not in (0, len(weights)):
            raise InputError(f"task.class_weights: got {len(weights)} weights; there are {num_outputs} classes")
        return Segmentation(num_outputs, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        """Return the number of classes of logits (1, classes, h, w); None for anything else."""
        logits = _first(outputs)
        fits = isinstance(logits, Tensor) and logits.ndim == 4 and len(logits) == 1 and logits.is_floating_point()
        return int(logits.shape[1]) if fits and isinstance(logits, Tensor) else None


@dataclass(frozen=True)
class Segmentation(Task):
    """Cross entropy over the pixels that count, with the Dice loss and auxiliary heads where they are asked for.

    Logits of another height and width than the masks are resized to theirs, bilinearly, for the loss and the metrics.
    """

    config: SegmentationConfig = field(default_factory=SegmentationConfig)

    form = "logits (N, classes, height, width)"
    counted = "classes"
    output_name = "logits"
    scored = "positions"

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Return the loss of the logits, and of those of auxiliary heads with their weight where a `model` is given."""
        masks = masks_of(batch)
        loss = self._of_one(self.tensor(outputs), masks)
        if model is not None and self.config.auxiliary:
            for auxiliary in _others(outputs):
                loss = loss + self.config.auxiliary * self._of_one(auxiliary, masks)
        return loss

    def _of_one(self, logits: Tensor, masks: Tensor) -> Tensor:
        logits = fitted(logits.to(torch.promote_types(logits.dtype, torch.float32)), masks)
        _check_classes(logits, masks, self.config.ignore_index)
        total, weight = self._cross_entropy(logits, masks)
        loss = total / weight.clamp_min(torch.finfo(weight.dtype).tiny)  # a batch may hold no pixel that counts
        return loss + self.config.dice * self._dice(logits, masks).mean() if self.config.dice else loss

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over the pixels that count, by the weights of their classes, and the sum of these weights."""
        ignored = self.config.ignore_index
        given = self.config.class_weights
        weights = None if given is None else torch.tensor(given, dtype=logits.dtype, device=logits.device)
        total = F.cross_entropy(logits, masks, weights, ignore_index=ignored, reduction="sum")
        counts = masks != ignored
        weight = counts.sum() if weights is None else weights[masks[counts]].sum()
        return total, weight.to(logits.dtype)

    def _dice(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return 1 - Dice of every image (N,): the mean of 2 Σ p t / (Σ p + Σ t) over the classes that it shows.

        0 for an image that shows none.

        Milletari, Navab and Ahmadi, "V-Net", 2016, section 3, with sums in place of sums of squares, as is usual.
        """
        counts = (masks != self.config.ignore_index)[:, None]
        shares = logits.softmax(1) * counts
        labels = masks.where(counts[:, 0], 0)
        wanted = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(shares.dtype) * counts
        both, sums = (shares * wanted).sum((2, 3)), (shares + wanted).sum((2, 3))
        shown = wanted.amax((2, 3))
        dice = 2 * both / sums.clamp_min(torch.finfo(sums.dtype).tiny)
        return ((1 - dice) * shown).sum(1) / shown.sum(1).clamp_min(1)

    def drawn_loss(self, outputs: Any, generator: Generator) -> Tensor:
        """Return the summed cross entropy of a class drawn for every pixel of the logits, each with a random sign."""
        logits = self.tensor(outputs).float()
        rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
        labels = torch.multinomial(rows.detach().softmax(1).cpu(), 1, generator=generator)[:, 0].to(rows.device)
        signs = torch.randint(0, 2, (len(rows),), generator=generator).to(rows) * 2 - 1
        return (signs * F.cross_entropy(rows, labels, reduction="none")).sum()

    def tensor(self, outputs: Any) -> Tensor:
        """Return the logits (N, classes, h, w) as the model gives them: a tensor, `out`, or the first of several."""
        return logits_of(outputs)

    def check_alike(self, student: Tensor, teacher: Tensor) -> None:
        """Raise InputError where two models give different classes, or maps of different sizes."""
        if student.shape[1] != teacher.shape[1]:
            raise InputError(f"the teacher gives {teacher.shape[1]} classes, the model {student.shape[1]}")
        if student.shape != teacher.shape:
            sizes = [f"{each.shape[2]}x{each.shape[3]}" for each in (teacher, student)]
            raise InputError(f"the teacher gives class maps of {sizes[0]}, the model of {sizes[1]}")

    def for_file(self, model: nn.Module, post_processing: bool = True) -> nn.Module:
        """Return the model as one that gives logits alone where it gives torchvision's dictionary, with `aux` or not.

        Heads for training only are no part of a file. The layers keep their names.
        """
        twin = copy.copy(model)
        twin._forward_hooks = OrderedDict(model._forward_hooks)
        twin.register_forward_hook(lambda module, inputs, outputs: _alone(outputs))
        return twin

    def outputs_in(self, names: Sequence[str]) -> Sequence[str]:
        """Return the output that is called logits or out, else the first."""
        return [next((name for name in (self.output_name, *MAIN_KEYS) if name in names), names[0])]

    def disagreement(self, name: str, output: Tensor, expected: Tensor, within: float) -> str | None:
        """Return at how many pixels another class wins, leaving out those where it is as good as the winner."""
        if name not in (self.output_name, *MAIN_KEYS) or expected.ndim != 4:
            return None
        behind = expected.amax(1) - expected.gather(1, output.argmax(1, keepdim=True))[:, 0]
        wrong = int((behind > within).sum())
        return f"at {wrong} of {behind.numel()} pixels another class wins than in the model" if wrong else None

    def meter(self) -> Meter:
        """Return what counts pixels by their class and the one that wins there, and averages the loss."""
        return _Meter(self)


class _Meter(Meter):
    """`miou` and `pixel_accuracy` (0-100), and `loss`: the cross entropy of pixels, with the mean Dice of images.

    The mean IoU is of all images together; a class that no pixel has and none is taken for is left out of the mean.
    """

    def __init__(self, task: Segmentation) -> None:
        self.task, self.table, self.images = task, torch.zeros(0, 0, dtype=torch.int64), 0
        self.cross_entropy, self.weight, self.dice = 0.0, 0.0, 0.0

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in logits (N, classes, h, w), of several outputs as `Segmentation.tensor` has it."""
        masks, ignored = masks_of(batch).cpu(), self.task.config.ignore_index
        logits = self.task.tensor(outputs).float().cpu()
        if not bool(torch.isfinite(logits).all()):
            raise Diverged("the model's logits are NaN or infinite: its training diverged or its weights are damaged")
        logits = fitted(logits, masks)
        _check_classes(logits, masks, ignored)
        classes = logits.shape[1]
        counts = masks != ignored
        pairs = masks[counts] * classes + logits.argmax(1)[counts]
        table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self.table = table if not self.images else self.table + table
        total, weight = self.task._cross_entropy(logits, masks)
        self.cross_entropy += float(total)
        self.weight += float(weight)
        if self.task.config.dice:
            self.dice += float(self.task._dice(logits, masks).sum())
        self.images += len(masks)

    def compute(self) -> dict[str, float | None]:
        """Return the metrics of what was taken in; None where no pixel counted."""
        right = self.table.diagonal().double()
        either = (self.table.sum(0) + self.table.sum(1)).double() - right
        if not bool(either.any()) or not self.weight:
            return dict.fromkeys(("miou", "pixel_accuracy", "loss"))
        dice = self.task.config.dice * self.dice / self.images
        return {
            "miou": 100 * float((right[either > 0] / either[either > 0]).mean()),
            "pixel_accuracy": 100 * float(right.sum() / self.table.sum()),
            "loss": self.cross_entropy / self.weight + dice,
        }


def masks_of(batch: Batch) -> Tensor:
    """Return the masks (N, H, W) of a batch; InputError where there are none of class numbers, or of other sizes."""
    masks, images = batch.targets, batch.inputs
    if not isinstance(masks, Tensor) or masks.ndim != 3 or masks.is_floating_point():
        given = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else f"a {type(masks).__name__}"
        raise InputError(f"data: its targets are {given}; task segmentation needs masks of class numbers (N, H, W)")
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[2:] != masks.shape[1:]:
        sizes = [f"{height}x{width}" for height, width in (images.shape[2:], masks.shape[1:])]
        raise InputError(f"data: images of {sizes[0]} have masks of {sizes[1]}; both have to be of one size")
    return masks


def fitted(logits: Tensor, masks: Tensor) -> Tensor:
    """Return logits (N, classes, h, w) at the height and width of masks (N, H, W), bilinearly where they differ."""
    if len(logits) != len(masks):
        raise InputError(f"the model returned {tuple(logits.shape)} for {len(masks)} images")
    if logits.shape[2:] == masks.shape[1:]:
        return logits
    return F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=False)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits (N, classes, h, w) in what a model gave; InputError where there are none."""
    found = _first(outputs)
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    given = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(outputs).__name__}"
    keys = f" with the keys {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise InputError(
        f"model: it returns {given}{keys}; task segmentation needs logits (N, classes, height, width), or several "
        f"outputs of which they are the first or called {' or '.join(MAIN_KEYS)}"
    )


def _first(outputs: Any) -> Any:
    if isinstance(outputs, Mapping):
        return next((outputs[key] for key in MAIN_KEYS if key in outputs), None)
    return outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs


def _alone(outputs: Any) -> Any:
    """Return the logits of a dictionary that holds nothing else that is of use; any other outputs as they are."""
    if not isinstance(outputs, Mapping) or not {*outputs} - {"aux"} <= {*MAIN_KEYS}:
        return outputs
    return _first(outputs)


def _others(outputs: Any) -> list[Tensor]:
    """Return the logits of auxiliary heads: torchvision's `aux`, or those behind the first of several."""
    if isinstance(outputs, Mapping):
        return [outputs["aux"]] if "aux" in outputs else []
    return [each for each in outputs[1:] if isinstance(each, Tensor)] if isinstance(outputs, tuple | list) else []


def _check_classes(logits: Tensor, masks: Tensor, ignored: int) -> None:
    classes = logits.shape[1]
    wrong = (masks != ignored) & ((masks < 0) | (masks >= classes))
    if bool(wrong.any()):
        raise InputError(
            f"data: a mask holds the class {int(masks[wrong][0])}; the model tells {classes} apart (0 to "
            f"{classes - 1}), and {ignored} is the number of pixels that do not count (task.ignore_index)"
        )
