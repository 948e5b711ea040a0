"""Regression: numbers near wanted ones. Clean images, counts, qualities, depths: whatever is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from compress.core.errors import Diverged, InputError
from evaluators.datasets.batch import Batch
from evaluators.tasks.task import Meter, Metric, Shape, Task, TaskConfig, tasks

LEAST_SIDE = 11
"""Pixels a side from which on SSIM's window (a Gaussian of 1.5 pixels, Wang et al. 2004) fits in."""
MOST_PSNR = 100.0
"""dB that an image counts as which is right in every pixel."""
EPSILON = 1e-3
"""Where Charbonnier's distance turns from a square into an absolute value, as in image restoration."""

MAE = Metric("mae", "minimize", "MAE", "Mean absolute error", digits=4, worst=1e6)
PSNR = Metric("psnr", "maximize", "PSNR", "Peak signal-to-noise ratio", "dB", "dB")
SSIM = Metric("ssim", "maximize", "SSIM", "Structural similarity", digits=4, worst=-1.0)
LOSS = Metric("loss", "minimize", "loss", "Loss", digits=4, worst=1e12)


@tasks.register("regression")
class RegressionConfig(TaskConfig):
    """Numbers near wanted ones: models give tensors (N, ...), targets are float32 of the same shape."""

    metrics: ClassVar[tuple[Metric, ...]] = (MAE, PSNR, SSIM, LOSS)
    targets: ClassVar[str | None] = "values"
    name: Literal["regression"] = Field("regression", description="what the model is for")
    loss: Literal["l1", "l2", "charbonnier"] = Field(
        "l2", description="mean absolute difference, mean square, or mean of sqrt(difference² + 0.001²)"
    )
    metric: Literal["mae", "psnr", "ssim"] = Field("mae", description="by which models are chosen")
    data_range: float | None = Field(
        None, gt=0, description="of the targets of images, largest less smallest, for PSNR and SSIM; null: neither"
    )

    @model_validator(mode="after")
    def _ranged(self) -> Self:
        if self.metric != "mae" and self.data_range is None:
            raise ValueError(f"metric: {self.metric} needs data_range, such as 1.0 for targets between 0 and 1")
        return self

    @property
    def main_metric(self) -> Metric:
        """The metric that the option names."""
        return next(each for each in self.metrics if each.name == self.metric)

    def bind(self, num_outputs: int, input_size: Shape) -> Regression:
        """Return the task for targets of `num_outputs` numbers a sample, or channels of a map."""
        return Regression(num_outputs, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        """Return the size of dimension 1 of numbers (1, outputs, ...), 1 for (1,); None for anything else."""
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim == 0 or len(outputs) != 1:
            return None
        return int(outputs.shape[1]) if outputs.ndim > 1 else 1


@dataclass(frozen=True)
class Regression(Task):
    """The distance of numbers (N, ...) from the wanted ones."""

    config: RegressionConfig = field(default_factory=RegressionConfig)

    form = "numbers (N, ...) of the targets' shape"
    counted = "outputs"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The main one first; psnr and ssim where the range of the targets is given."""
        known = (MAE, LOSS) if self.config.data_range is None else self.config.metrics
        return (self.main_metric, *(each for each in known if each is not self.main_metric))

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Return the mean distance over all numbers, as the option `loss` has it."""
        found = self.tensor(outputs)
        return distances(found, wanted(found, batch.targets), self.config.loss).mean()

    def drawn_loss(self, outputs: Any, generator: Generator) -> Tensor:
        """Return the sum of the outputs with random signs: the Gauss-Newton matrix of a square is that of its outputs.

        That is the loss of targets one standard deviation off, half a square, up to a constant.
        """
        found = self.tensor(outputs)
        signs = torch.randint(0, 2, found.shape, generator=generator).to(found) * 2 - 1
        return (signs * found).sum()

    def tensor(self, outputs: Any) -> Tensor:
        """Return the numbers."""
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim == 0:
            raise InputError(f"model: it returns {_told(outputs)}; regression needs one tensor of numbers (N, ...)")
        return outputs

    def meter(self) -> Meter:
        """Return what averages distances over samples."""
        return _Meter(self)


class _Meter(Meter):
    """Means over the samples, each sample's own over its numbers, in float64."""

    def __init__(self, task: Regression) -> None:
        self.task, self.count = task, 0
        self.sums: dict[str, float | None] = {}

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in numbers (N, ...)."""
        found = self.task.tensor(outputs).float().cpu()
        targets = wanted(found, batch.targets)
        if not bool(torch.isfinite(found).all()):
            raise Diverged("the model's outputs are NaN or infinite: its training diverged or its weights are damaged")
        values: dict[str, Tensor | None] = {
            "mae": _of_each(distances(found, targets, "l1")),
            "loss": _of_each(distances(found, targets, self.task.config.loss)),
            **self._of_images(found, targets),
        }
        for name, each in values.items():
            known = self.sums.get(name, 0.0)
            self.sums[name] = None if each is None or known is None else known + float(each.double().sum())
        self.count += len(found)

    def compute(self) -> dict[str, float | None]:
        """Return the means; psnr and ssim None where the targets' range is not known, ssim for images too small."""
        sums = (self.sums.get(metric.name) for metric in self.task.config.metrics)
        names = (metric.name for metric in self.task.config.metrics)
        return {name: None if each is None else each / self.count for name, each in zip(names, sums, strict=True)}

    def _of_images(self, found: Tensor, targets: Tensor) -> dict[str, Tensor | None]:
        """Return PSNR and SSIM of every image (N,), in float32."""
        span = self.task.config.data_range
        if span is None:
            return {}
        if found.ndim not in (4, 5):
            raise InputError(
                f"task.data_range: PSNR and SSIM are of images (N, C, H, W) or volumes; got outputs of "
                f"{tuple(found.shape)}; leave it out"
            )
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        inner = tuple(range(1, found.ndim))
        psnr = peak_signal_noise_ratio(found, targets, data_range=span, dim=inner, reduction="none")
        ssim = None
        if min(found.shape[2:]) >= LEAST_SIDE:
            each = structural_similarity_index_measure(found, targets, data_range=span, reduction="none")
            ssim = cast(Tensor, each)  # a tuple only where more is asked for
        elif self.task.main_metric is SSIM:
            sides = "x".join(map(str, found.shape[2:]))
            raise InputError(f"task.metric: ssim needs images of {LEAST_SIDE} pixels a side or more; got {sides}")
        return {"psnr": psnr.clamp(max=MOST_PSNR), "ssim": ssim}


def distances(found: Tensor, targets: Tensor, kind: Literal["l1", "l2", "charbonnier"]) -> Tensor:
    """Return the distance of every number from the one that is wanted; both of one shape.

    `charbonnier`: sqrt(d² + 0.001²) (Charbonnier et al. 1994; Lai et al., "Deep Laplacian Pyramid Networks", 2017).
    """
    if kind == "l1":
        return (found - targets).abs()
    if kind == "l2":
        return (found - targets).square()
    return ((found - targets).square() + EPSILON**2).sqrt()


def wanted(found: Tensor, targets: Any) -> Tensor:
    """Return the targets in the type, the place and the shape of `found`; (N,) may stand for (N, 1).

    Raises:
        InputError: they are of another shape, which must not be spread out.
    """
    if not isinstance(targets, Tensor):
        raise InputError(f"data: regression needs targets of numbers, one tensor; got {_told(targets)}")
    if targets.shape != found.shape and targets.shape == found.shape[:1] and found.numel() == len(found):
        targets = targets.reshape(found.shape)
    if targets.shape != found.shape:
        raise InputError(
            f"model: it returns {tuple(found.shape)}, the data's targets are {tuple(targets.shape)}; regression needs "
            "the same shape"
        )
    fitted: Tensor = targets.to(found)
    return fitted


def _of_each(values: Tensor) -> Tensor:
    """Return the mean of each sample's numbers, float64 (N,)."""
    means: Tensor = values.double().reshape(len(values), -1).mean(1)
    return means


def _told(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
