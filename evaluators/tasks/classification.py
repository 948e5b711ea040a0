"""Classification: one class of several for every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from compress.core.errors import Diverged, InputError
from evaluators.datasets.batch import Batch
from evaluators.tasks.task import Meter, Metric, Shape, Task, TaskConfig, tasks

if TYPE_CHECKING:
    from timm.data import Mixup

TOP5_FROM = 6  # with five classes or fewer, top-5 is always right
# Of torchvision's training heads: Szegedy et al. 2015, section 5; Inception as torchvision's guide has it.
AUXILIARY_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}

TOP1 = Metric("top1", "maximize", "top-1", "Top-1 accuracy", "%", "points")
TOP5 = Metric("top5", "maximize", "top-5", "Top-5 accuracy", "%", "points")
# its worst is where float32 cannot tell the right class's probability from 0
LOSS = Metric("loss", "minimize", "loss", "Loss", digits=4, worst=87.3)


@tasks.register("classification")
class ClassificationConfig(TaskConfig):
    """One class of several for every image: models give logits (N, classes), targets are class numbers (N,)."""

    metrics: ClassVar[tuple[Metric, ...]] = (TOP1, TOP5, LOSS)
    targets: ClassVar[str | None] = "classes"
    name: Literal["classification"] = Field("classification", description="what the model is for")

    def bind(self, num_outputs: int, input_size: Shape) -> Classification:
        """Return the task for `num_outputs` classes."""
        return Classification(num_outputs, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        """Return the number of classes of logits (1, classes), by that name or first; None for anything else."""
        first = _named(outputs)
        if first is None:
            first = outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs
        fits = isinstance(first, Tensor) and first.ndim == 2 and len(first) == 1 and first.is_floating_point()
        return int(first.shape[1]) if fits else None


@dataclass(frozen=True)
class Classification(Task):
    """Cross entropy on class numbers, with label smoothing, mixup, cutmix and auxiliary heads as settings have it."""

    num_outputs: int = 1000
    input_size: Shape = (3, 224, 224)
    config: TaskConfig = field(default_factory=ClassificationConfig)
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    form = "logits (N, classes)"
    counted = "classes"
    output_name = "logits"
    scored = "samples"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """top1, top5 (from six classes on), loss."""
        return (TOP1, TOP5, LOSS) if self.num_outputs >= TOP5_FROM else (TOP1, LOSS)

    def learning(self, options: Any) -> Self:
        """Return the task with the settings' label smoothing, mixup and cutmix."""
        return replace(self, label_smoothing=options.label_smoothing, mixup=options.mixup, cutmix=options.cutmix)

    @cached_property
    def _mixing(self) -> Mixup | None:
        if self.mixup == 0 and self.cutmix == 0:
            return None
        from timm.data import Mixup  # takes long to import: only where something is mixed

        return Mixup(self.mixup, self.cutmix, label_smoothing=self.label_smoothing, num_classes=self.num_outputs)

    def mixed(self, batch: Batch) -> Batch:
        """Return images mixed in pairs, with a probability (N, classes) of every class, smoothed, as targets."""
        if self._mixing is None or len(batch) < 2:
            return batch
        even = batch.part(0, len(batch) // 2 * 2)  # Mixup pairs an image with another: an odd one is left out
        assert isinstance(even.inputs, Tensor)
        return Batch(*self._mixing(even.inputs.clone(), even.targets))

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Return the mean cross entropy; smoothed, unless the targets are mixed, which are smoothed already.

        Of several outputs the first are the logits. The others, the logits of auxiliary heads, join with the model's
        attribute `auxiliary_weight`, if it has that, and those of torchvision's GoogLeNet and Inception with the
        published weight.
        """
        smoothing = 0.0 if batch.targets.is_floating_point() else self.label_smoothing
        loss = F.cross_entropy(_of_classes(self.tensor(outputs)), batch.targets, label_smoothing=smoothing)
        if model is None or not isinstance(outputs, tuple | list):
            return loss
        weight = getattr(model, "auxiliary_weight", AUXILIARY_WEIGHTS.get(type(outputs).__name__, 0.0))
        for auxiliary in outputs[1:] if weight else ():
            loss = loss + weight * F.cross_entropy(auxiliary, batch.targets, label_smoothing=smoothing)
        return loss

    def drawn_loss(self, outputs: Any, generator: Generator) -> Tensor:
        """Return the summed cross entropy of one drawn class and one random sign per image."""
        logits = _of_classes(self.tensor(outputs))
        shares = logits.detach().float().softmax(1).cpu()
        labels = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
        signs = torch.randint(0, 2, (len(logits),), generator=generator).to(logits) * 2 - 1
        return (signs * F.cross_entropy(logits, labels, reduction="none")).sum()

    def tensor(self, outputs: Any) -> Tensor:
        """Return the logits (N, classes): the first of several outputs."""
        logits = logits_of(outputs)
        if logits.ndim != 2:
            raise InputError(f"model: it returns {tuple(logits.shape)}; training needs logits (N, classes)")
        return logits

    def check_alike(self, student: Tensor, teacher: Tensor) -> None:
        """Raise InputError where two models give different classes."""
        if student.shape != teacher.shape:
            raise InputError(f"the teacher gives {teacher.shape[1]} classes, the model {student.shape[1]}")

    def outputs_in(self, names: Sequence[str]) -> Sequence[str]:
        """Return the output that is called logits, else the first."""
        return super().outputs_in(names)[:1]

    def disagreement(self, name: str, output: Tensor, expected: Tensor, within: float) -> str | None:
        """Return that another class wins, unless it is as good as the winner."""
        if name != self.output_name or expected.ndim != 2:
            return None
        behind = expected.amax(1) - expected.gather(1, output.argmax(1, keepdim=True))[:, 0]
        return "another class wins than in the model" if bool((behind > within).any()) else None

    def meter(self) -> Meter:
        """Return what counts right answers and averages the cross entropy."""
        return _Meter()


class _Meter(Meter):
    """`top1` and `top5` (0-100; top5 None below six classes) and the mean cross-entropy `loss`, in float64."""

    def __init__(self) -> None:
        self.total, self.top1, self.top5, self.loss, self.classes = 0, 0, 0, 0.0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in logits (N, classes); of several outputs the first counts."""
        logits, labels = logits_of(outputs).float().cpu(), batch.targets.cpu()
        self.classes = _check(logits, labels)
        ranked = logits.topk(min(5, self.classes), dim=1).indices == labels.unsqueeze(1)
        self.top1 += int(ranked[:, 0].sum())
        self.top5 += int(ranked.sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="none").double().sum())
        self.total += len(labels)

    def compute(self) -> dict[str, float | None]:
        """Return the metrics of what was taken in."""
        return {
            "top1": 100 * self.top1 / self.total,
            "top5": 100 * self.top5 / self.total if self.classes >= TOP5_FROM else None,
            "loss": self.loss / self.total,
        }


def _named(outputs: Any) -> Tensor | None:
    """Return what a dictionary or an object with fields, as transformers has them, calls logits."""
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return named if isinstance(named, Tensor) and not isinstance(outputs, Tensor) else None


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a model gave: a tensor, what is called logits, or the first of several (in a tuple).

    Raises InputError for anything else, such as a dictionary of other things.
    """
    named = _named(output)
    if named is not None:
        return named
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Tensor):
        return output
    keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise InputError(
        f"model: it returns a {type(output).__name__}{keys}; training and evaluation need logits (N, classes), "
        "a dictionary that has them as logits, or a tuple that begins with them"
    )


def _of_classes(logits: Tensor) -> Tensor:
    """Return the logits; of a single one the cross entropy is always 0, which is refused."""
    if logits.shape[1] < 2:
        raise InputError(
            f"model: it returns {tuple(logits.shape)}, one number a sample; a classifier has two classes or more, and "
            "numbers are task regression"
        )
    return logits


def _check(logits: Tensor, labels: Tensor) -> int:
    """Return the number of classes of logits (N, classes) that fit the labels (N,)."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(f"the model returned {tuple(logits.shape)} for {len(labels)} images; logits are needed")
    if int(labels.max()) >= logits.shape[1]:
        raise InputError(f"data: an image has the label {int(labels.max())}, the model has {logits.shape[1]} logits")
    if not bool(torch.isfinite(logits).all()):
        raise Diverged("the model's logits are NaN or infinite: its training diverged or its weights are damaged")
    return logits.shape[1]
