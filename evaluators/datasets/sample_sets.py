"""Sets of images whose targets move along with them: masks and boxes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator
from torch import Tensor

from compress.core.errors import InputError
from evaluators.datasets.decoding import reason
from evaluators.datasets.image_files import sample_loaders, sides_for
from evaluators.datasets.images import Images, Positive, Unit
from evaluators.datasets.joint import IGNORED, Augmentation, JointTransform
from evaluators.datasets.loaders import Data
from evaluators.datasets.preprocessing import Statistics, choose
from evaluators.datasets.samples import Samples

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig

BACKGROUND = "background"
_LOOKED_AT = 32  # samples of a split that are read before anything is trained


@dataclass(frozen=True)
class SampleSet:
    """The splits that there are, and the class names in the order of their numbers.

    Attributes:
        train: what `JointTransform` takes; None: there is none.
        test: the same.
        class_names: one for each class, the background (if there is one) first.
        statistics: mean and standard deviation of each channel, for models that have none of their own.
    """

    train: Samples | None
    test: Samples | None
    class_names: list[str]
    statistics: Statistics | None = None


class SampleImages(Images):
    """Sets of images with masks or boxes, each image transformed by itself."""

    batch_size: int = Field(16, ge=1, description="images in a training batch")
    eval_batch_size: int = Field(32, ge=1, description="images in an evaluation batch")
    flip: Unit = Field(0.5, description="probability that a training image is mirrored")
    scale: tuple[Positive, Positive] = Field(
        (0.5, 2.0), description="training images are scaled by a factor from this range, then cut or filled up"
    )
    color_jitter: float = Field(0.2, ge=0, le=1, description="strength of colour jitter of training images")
    limit_train: int | None = Field(None, ge=1, description="use that many training images")
    limit_test: int | None = Field(None, ge=1, description="use that many test images")
    workers: int = Field(2, ge=0, description="processes that read images, at most one a core; 0 reads in this one")

    @field_validator("scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError(f"the smaller factor comes first; got {scale[0]:g}, {scale[1]:g}")
        return scale

    @abstractmethod
    def open(self, task: TaskConfig) -> SampleSet:
        """List the samples of the set, with targets as `task` learns from; InputError where it is wrong."""

    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> Data:
        """Return loaders that read and transform samples one by one."""
        hint = dict(preprocessing_hint or {})
        found = self.open(task)
        sides = sides_for(self.image_size or image_size, hint)
        preprocessing = choose(self, hint, sides, 3, measured=found.statistics, crop_pct=1.0)
        drawn = Augmentation(self.flip, self.scale, self.color_jitter)
        ignored = getattr(task, "ignore_index", IGNORED)
        evaluation, augmented = (JointTransform(preprocessing, each, ignored) for each in (None, drawn))
        train, test = sample_loaders(self, (found.train, found.test), evaluation, augmented, self.workers, seed)
        bound = task.bind(len(found.class_names), preprocessing.input_size)
        return Data(bound, preprocessing, train, test, found.class_names)


def looked_at(samples: Samples, key: str) -> Samples:
    """Return `samples` once a few, from all over, have been read; InputError, beginning with `key`, for a wrong one.

    So most of what is wrong is told before anything is trained; the rest when it is met. If none of their
    masks holds a pixel that counts, that is wrong as well.
    """
    count, counted = len(samples.indices), not samples.indices
    for place in range(0, count, max(1, count // _LOOKED_AT)):
        number = samples.indices[place]
        try:
            _, target = samples.read(number)
        except Exception as error:  # as when it is read later
            raise InputError(f"{key}: cannot read image {samples.name(number)}: {reason(error)}") from error
        counted = counted or not isinstance(target, Tensor) or bool((target != IGNORED).any())
    if not counted:
        raise InputError(
            f"{key}: no mask that was looked at holds a pixel that counts: all are {IGNORED}, or of ids without a class"
        )
    return samples
