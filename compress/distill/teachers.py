"""Teachers: the model before compression, and any other that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.progress import say
from evaluators.datasets.images import Positive, Unit
from evaluators.datasets.preprocessing import Preprocessing, per_channel
from spaces.checkpoint_file import some
from spaces.shapes import shown
from spaces.zoo import ModelSection, build_model

if TYPE_CHECKING:
    from evaluators.datasets import Data
    from evaluators.tasks import Task


class TeacherConfig(Config):
    """One teacher."""

    model: ModelSection | None = Field(
        None, description="any model source, at its own input_size; null: the model before compression"
    )
    weight: float = Field(1.0, gt=0, description="share of its outputs beside other teachers'")
    cache: str | None = Field(
        None,
        min_length=1,
        description="folder of its outputs, from `compress cache-teacher`: the model is not run, nor has layers",
    )
    untrained: bool = Field(
        False, description="allow a model without weights, or a classifier without, whose layers can guide all the same"
    )
    mean: tuple[Unit, ...] | None = Field(
        None,
        min_length=1,
        description="per channel, for pixels in 0..1, as it was trained; null: as published with it, else the model's",
    )
    std: tuple[Positive, ...] | None = Field(None, min_length=1, description="the same; null: as for mean")

    def unfit(self, task: Task) -> str | None:
        """Return that the task gives no tensor of outputs that could be kept, where they are to be."""
        if self.cache is None or task.gives_tensor:
            return None
        return f"cache holds one tensor of outputs for each image, and task {task.name} gives none; leave it out"

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std: give both or neither")
        if self.model is None:
            if self.mean is not None:
                raise ValueError(
                    "mean and std: the model before compression takes what the model takes; leave them out"
                )
            if self.cache is not None:
                raise ValueError(
                    "cache: the model before compression is not there yet; name another model, or no cache"
                )
            return self
        if wrong := self.model.problems():
            raise ValueError("; ".join(f"model.{key}: {text}" for key, text in wrong))
        if not self.model.has_weights and not self.untrained:
            raise ValueError(
                "model: has no weights to teach with; give checkpoint, pretrained: true or source: bundle, or say "
                "untrained: true"
            )
        return self


Teachers = dict[str, TeacherConfig]
"""The key `teachers` of a recipe: the teachers by names of the user's own; none: the model before compression."""

DENSE = "dense"
"""What the model before compression is called where the recipe names no teachers."""


def needs_dense(teachers: Mapping[str, TeacherConfig]) -> bool:
    """Return whether the model before compression is one of the teachers."""
    return not teachers or any(each.model is None for each in teachers.values())


def opened(name: str, teacher: TeacherConfig, data: Data, key: str = "teachers") -> nn.Module:
    """Return the model of a teacher, which takes the inputs that the student gets.

    Images are normalised, resized and given channels as the teacher has to see them, on the way.

    Args:
        name: of the teacher, for messages.
        teacher: has a model. Published weights and bundles keep their own head.
        data: what the student learns from.
        key: of the recipe, for messages.

    Raises:
        InputError: it cannot be built, takes inputs that cannot be made of the student's, or is a trained one whose
            file has the classifier of other classes.
    """
    ours, task, config = data.preprocessing, data.task, teacher.model
    assert config is not None
    if config.source == "bundle" or config.input_size is not None:
        task = task.resized(config.input_size or ())  # a bundle has a size of its own
    if config.pretrained or config.source == "bundle":
        task = task.config.bind(0, task.input_size)
    try:
        built = build_model(config, task)
    except InputError as error:
        raise InputError(*(f"{key}.{name}.{problem}" for problem in error.problems)) from error
    if (report := built.load_report) is not None and not report.clean:
        if report.replaced and not teacher.untrained:
            raise InputError(
                f"{key}.{name}.model.checkpoint: the classifier in {report.source} is of other classes than the data, "
                f"so that the teacher's would be random ({some(report.replaced)}); give another file, or say "
                "untrained: true where its layers alone are to guide"
            )
        say(f"teacher {name}: {report.summary()}")
    known = {"mean": ours.mean, "std": ours.std} | {k: v for k, v in built.pretrained_cfg.items() if v is not None}
    if teacher.mean is not None and teacher.std is not None:
        channels = built.input_size[0]
        known["mean"] = per_channel(f"{key}.{name}.mean", teacher.mean, channels)
        known["std"] = per_channel(f"{key}.{name}.std", teacher.std, channels)
    theirs = Preprocessing.of_model(known, built.input_size)
    if all(getattr(theirs, part) == getattr(ours, part) for part in ("input_size", "mean", "std")):
        return built.module
    widths = {each.input_size[0] for each in (ours, theirs)}
    if len(ours.input_size) != 3 or len(theirs.input_size) != 3 or widths not in ({1, 3}, {ours.input_size[0]}):
        raise InputError(
            f"{key}.{name}.model: takes inputs of {shown(theirs.input_size)}, which cannot be made of the model's, "
            f"{shown(ours.input_size)}"
        )
    built.module.register_forward_pre_hook(Adapter(ours, theirs).before)  # no wrapper, so that layers keep their names
    return built.module


class Adapter(nn.Module):
    """Makes images (N, C, H, W) that were prepared for one model what another one has to see."""

    def __init__(self, given: Preprocessing, wanted: Preprocessing) -> None:
        super().__init__()
        self.size, self.interpolation = wanted.input_size, wanted.interpolation
        for name, values in (("mean", given), ("wanted_mean", wanted)):
            self.register_buffer(name, _column(values.mean), persistent=False)
        for name, values in (("std", given), ("wanted_std", wanted)):
            self.register_buffer(name, _column(values.std), persistent=False)

    mean: Tensor
    std: Tensor
    wanted_mean: Tensor
    wanted_std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return `images` as the other model has to see them."""
        pixels = images * self.std + self.mean
        if self.size[0] > pixels.shape[1]:
            pixels = pixels.expand(-1, self.size[0], -1, -1)
        elif self.size[0] < pixels.shape[1]:
            pixels = pixels.mean(1, keepdim=True)
        if tuple(pixels.shape[2:]) != tuple(self.size[1:]):
            pixels = F.interpolate(pixels, self.size[1:], mode=self.interpolation, antialias=True)
        return (pixels - self.wanted_mean) / self.wanted_std

    def before(self, model: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Stand before a model's forward pass, which gets its first argument adapted."""
        self.to(args[0].device)
        return self(args[0]), *args[1:]


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)
