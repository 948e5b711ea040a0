"""Features: the student's layers come to give what the teacher's do, behind projectors that train for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from compress.distill.layers import Seen
from compress.distill.losses import DistillLoss, LossConfig, Sides, losses
from compress.distill.matching import pairs_of
from evaluators.datasets.batch import Batch


@losses.register("feature")
class FeatureConfig(LossConfig):
    """Hidden layers: weight · mean distance between the student's features, projected, and the teacher's.

    Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, for any number of layers. Maps are averaged to the smaller
    grid of both; class tokens are compared where both have them, and left out otherwise.
    """

    compares = "layers"
    loss: Literal["feature"] = Field("feature", description="projected features of hidden layers")
    layers: dict[str, str] = Field(
        min_length=1,
        description="the student's layers by glob, and those of the teacher that they learn from; where these are more "
        "or fewer, each learns from the one that lies as far along",
    )
    teacher: str | None = Field(None, description="name of the teacher; null: the first")
    distance: Literal["mse", "cosine"] = Field("mse", description="mean squared difference, or 1 - cosine of vectors")
    normalize: bool = Field(True, description="bring every vector to mean 0 and variance 1 over its channels first")
    projector: Literal["auto", "linear"] = Field(
        "auto", description="a linear layer at every position (a 1x1 convolution); auto: only where widths differ"
    )
    weight: float = Field(1.0, ge=0, description="of the distance beside the loss on the labels")

    def make(self, sides: Sides) -> DistillLoss:
        """Return the term with its projectors; InputError where layers are not there or cannot be compared."""
        return FeatureLoss(self, sides)


class FeatureLoss(DistillLoss):
    """The term of `FeatureConfig`; projectors (student's width -> teacher's) train in the run's optimiser."""

    def __init__(self, config: FeatureConfig, sides: Sides) -> None:
        super().__init__()
        self.config = config
        guide = sides.guide(config.teacher, "feature.teacher")
        self.pairs, self.guide = pairs_of(sides, guide, config.layers, "feature.layers"), guide.name
        self.student_layers = [pair.student for pair in self.pairs]
        self.teacher_layers = {guide.name: [pair.teacher for pair in self.pairs]}
        widths = [(pair.layouts[0].width, pair.layouts[1].width) for pair in self.pairs]
        self.projectors = nn.ModuleList(
            nn.Linear(ours, theirs) if config.projector == "linear" or ours != theirs else nn.Identity()
            for ours, theirs in widths
        )

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return weight · the mean distance over the pairs."""
        taught = teachers[self.guide].features
        distances = []
        for pair, projector in zip(self.pairs, self.projectors, strict=True):
            ours, theirs = pair.both(student.features[pair.student], taught[pair.teacher])
            distances.append(distance(projector(ours), theirs, self.config.distance, self.config.normalize))
        return self.config.weight * torch.stack(distances).mean()


def distance(student: Tensor, teacher: Tensor, kind: Literal["mse", "cosine"], normalize: bool) -> Tensor:
    """Return the mean distance of vectors (..., channels), a scalar."""
    if normalize:
        student, teacher = (F.layer_norm(each, each.shape[-1:]) for each in (student, teacher))
    if kind == "mse":
        return F.mse_loss(student, teacher)
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
