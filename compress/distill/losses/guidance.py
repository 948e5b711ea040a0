"""Guidance: the student's layers come to order samples as a guide's do; the guide need not be trained."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.layers import Seen, layers_named
from compress.distill.losses import DistillLoss, LossConfig, Sides, losses
from compress.distill.matching import Layout, layouts, spread
from evaluators.datasets.batch import Batch, tensors_in

Estimator = Literal["debiased", "biased"]

KINDS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.RNNBase,
    nn.LayerNorm,
    nn.MultiheadAttention,
    nn.TransformerDecoderLayer,
)
"""The layers that are compared where a recipe names none, as published."""

POOLED = 256
"""Numbers a sample that maps are averaged to, as far as their channels allow."""


def similarities(features: Tensor) -> Tensor:
    """Return the Gram matrix (N, N) of features (N, ...), centred, in float32, at a scale of its own.

    CKA sees neither shift nor scale, which are taken out first: large ones would cost digits.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = features.flatten(1).float()
        rows = rows - rows.mean(0)
        largest = rows.detach().abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        rows = rows / largest
        size = rows.detach().square().sum(1).mean().sqrt().clamp_min(1e-20)
        rows = rows / size
        return rows @ rows.T


def hsic(one: Tensor, other: Tensor, estimator: Estimator) -> Tensor:
    """Return the Hilbert-Schmidt independence criterion of two Gram matrices (N, N) of centred features, a scalar.

    biased: tr(K H L H) / (N - 1)², Gretton et al. 2005. debiased: HSIC_1, Song et al. 2012, with N >= 4.
    """
    count = len(one)
    with torch.autocast(one.device.type, enabled=False):
        if estimator == "biased":
            return (one * other).sum() / (count - 1) ** 2
        one, other = (each - each.diagonal().diag() for each in (one, other))
        sums = one.sum() * other.sum() / ((count - 1) * (count - 2))
        rows = one.sum(0) @ other.sum(0)
        return ((one * other).sum() + sums - 2 * rows / (count - 2)) / (count * (count - 3))


def cka(one: Tensor, other: Tensor, estimator: Estimator = "debiased") -> Tensor:
    """Return the linear CKA of two Gram matrices as `similarities` gives them, a scalar; 0 where one is constant.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019.
    """
    between = hsic(one, other, estimator)
    own = hsic(one, one, estimator).clamp_min(1e-9) * hsic(other, other, estimator).clamp_min(1e-9)
    return between / own.sqrt()


@losses.register("guidance")
class GuidanceConfig(LossConfig):
    """Representational alignment: alpha · the sum over pairs of layers of 1 - CKA, beside the loss on the labels.

    Subramaniam et al., "Training the Untrainable: Introducing Inductive Bias via Representational Alignment", 2025.
    """

    loss: Literal["guidance"] = Field("guidance", description="layer-wise CKA with a guide, trained or not")
    layers: list[str] | None = Field(
        None, min_length=1, description="globs of the student's layers; null: convolutions, linear layers, norms, ..."
    )
    guide_layers: list[str] | None = Field(
        None, min_length=1, description="globs of the guide's; each goes with the student's that lies as far along"
    )
    teacher: str | None = Field(None, description="name of the guide; null: the first teacher")
    alpha: float = Field(1.0, ge=0, description="of the sum over the pairs")
    estimator: Estimator = Field(
        "debiased", description="of CKA; biased, as published, is near 1 for any wide layers in small batches"
    )
    pool: bool = Field(False, description=f"average maps to {POOLED} numbers a sample, as far as channels allow")
    first_updates: int | None = Field(None, ge=1, description="guide in these alone; null: in all")

    def make(self, sides: Sides) -> DistillLoss:
        """Return the term; InputError where layers are not there or have nothing to compare."""
        return GuidanceLoss(self, sides)


class GuidanceLoss(DistillLoss):
    """The term of `GuidanceConfig`.

    Attributes:
        pairs: (layer of the student, layer of the guide): every layer of the guide once.
    """

    def __init__(self, config: GuidanceConfig, sides: Sides) -> None:
        super().__init__()
        self.config = config
        guide = sides.guide(config.teacher, "guidance.teacher")
        assert guide.model is not None
        self.guide = guide.name
        ours = self._chosen(sides, sides.student, config.layers, "layers", "the model")
        theirs = self._chosen(sides, guide.model, config.guide_layers, "guide_layers", f"teacher {guide.name}")
        places = spread(len(theirs), len(ours))
        names = list(ours)
        self.pairs = [(names[place], layer) for place, layer in zip(places, theirs, strict=True)]
        self.layouts = {"ours": ours, "theirs": theirs}
        self.student_layers = list(dict.fromkeys(one for one, _ in self.pairs))
        self.teacher_layers = {guide.name: [other for _, other in self.pairs]}

    def active(self, update: int) -> bool:
        """Return whether the guide still guides."""
        return self.config.first_updates is None or update < self.config.first_updates

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return alpha · Σ (1 - CKA); 0 for the few samples that an epoch may end with."""
        least = 4 if self.config.estimator == "debiased" else 2
        count = len(student.tensor)
        if count < least:
            if update == 0:
                raise InputError(
                    f"guidance compares samples of a batch, at least {least}; got a batch of {count}: data.batch_size, "
                    "or the number of images, is too small"
                )
            return student.tensor.new_zeros(())
        seen = {"ours": student.features, "theirs": teachers[self.guide].features}
        grams = {
            side: {name: similarities(self._compared(self.layouts[side][name], each)) for name, each in given.items()}
            for side, given in (("ours", self._own(seen["ours"], 0)), ("theirs", self._own(seen["theirs"], 1)))
        }
        alike = torch.stack([cka(grams["ours"][a], grams["theirs"][b], self.config.estimator) for a, b in self.pairs])
        self.parts = {"cka": alike.detach().mean()}
        return self.config.alpha * (1 - alike).sum()

    def _own(self, features: Mapping[str, Any], side: int) -> dict[str, Any]:
        """Return what the layers of this term gave; other terms may look at more."""
        return {pair[side]: features[pair[side]] for pair in self.pairs}

    def _compared(self, layout: Layout, given: Any) -> Tensor:
        """Return the features of a layer (N, ...), averaged to few where the recipe says so."""
        values = 1
        for side in layout.shape:
            values *= side
        if not self.config.pool or values <= POOLED:
            return layout.tokens(given)
        side = max(1, isqrt(POOLED // layout.width))
        if layout.grid is None:
            return layout.tokens(given).mean(1)
        return layout.like(given, (min(side, layout.grid[0]), min(side, layout.grid[1])))

    def _chosen(
        self, sides: Sides, model: nn.Module, globs: list[str] | None, key: str, whose: str
    ) -> dict[str, Layout]:
        if globs is not None:
            return layouts(sides, model, layers_named(model, globs, f"guidance.{key}", whose), whose)
        names = comparable(sides, model)
        if not names:
            raise InputError(f"guidance.{key}: {whose} has no layer of a kind that is compared; name some")
        return layouts(sides, model, names, whose)


def comparable(sides: Sides, model: nn.Module) -> list[str]:
    """Return the names of the layers of `KINDS` that give a tensor with a row a sample, without that of the outputs."""
    gave: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: gave.update({name: next(tensors_in(output))}))
        for name, module in model.named_modules()
        if isinstance(module, KINDS)
    ]
    try:
        outputs = sides.look(model, []).tensor
    finally:
        for handle in handles:
            handle.remove()
    last = {name for name, each in gave.items() if torch.equal(each.flatten(), outputs.flatten())}
    ranked = [name for name, _ in model.named_modules() if name in gave and name not in last]
    return [name for name in ranked if 2 <= gave[name].ndim <= 4 and len(gave[name]) == len(outputs)]
