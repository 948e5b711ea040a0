"""Hybrid attention distillation: the student's last block looks where a well-chosen layer of the teacher looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.core.errors import InputError
from compress.core.progress import say
from compress.distill.attention import Attention, attention_loss, attentions, normalized_mutual_information
from compress.distill.layers import Seen
from compress.distill.losses import DistillLoss, Guide, LossConfig, Sides, losses
from compress.distill.matching import tensor_of
from evaluators.datasets.batch import Batch

HYBRID = 0.09
"""Normalised mutual information of attention between local and global, as published; over whole images alone."""


@losses.register("hybrid_attention")
class HybridAttentionConfig(LossConfig):
    """Attention maps: KL of the student's last attention from that of the teacher's layer of the wanted NMI.

    Zhang et al., "UNIP: Rethinking Pre-trained Attention Patterns for Infrared Semantic Segmentation", 2025; published
    with labels: 0.
    """

    compares = "layers"
    loss: Literal["hybrid_attention"] = Field(
        "hybrid_attention", description="attention maps of the teacher's layer between local and global"
    )
    layers: list[str] | None = Field(
        None,
        min_length=1,
        description="globs of the teacher's attention layers; of several, the NMI chooses; null: all",
    )
    student_layer: str | None = Field(None, description="glob of the student's attention layer; null: the last")
    teacher: str | None = Field(None, description="name of the teacher; null: the first")
    nmi: float | None = Field(
        None,
        ge=0,
        le=1,
        description="normalised mutual information that the chosen layer is nearest to; null: "
        f"{HYBRID}, for layers that look at whole images",
    )
    images: int = Field(512, ge=1, description="training images that it is measured on")
    weight: float = Field(1.0, ge=0, description="of the divergence")
    labels: float = Field(1.0, ge=0, le=1, description="share of the loss on the labels; 0, as published: none is read")

    @property
    def label_share(self) -> float:
        """What the recipe says."""
        return self.labels

    def make(self, sides: Sides) -> DistillLoss:
        """Return the term; InputError where there are no attention maps, or the two sides' differ in size."""
        return HybridAttentionLoss(self, sides)


class HybridAttentionLoss(DistillLoss):
    """The term of `HybridAttentionConfig`.

    Attributes:
        ours: the student's layer.
        theirs: the teacher's.
        measured: NMI of the teacher's layers by name, where several could be learnt from.
    """

    def __init__(self, config: HybridAttentionConfig, sides: Sides) -> None:
        super().__init__()
        self.weight = config.weight
        guide = sides.guide(config.teacher, "hybrid_attention.teacher")
        assert guide.model is not None
        wanted = None if config.student_layer is None else [config.student_layer]
        self.ours = attentions(sides, sides.student, wanted, "hybrid_attention.student_layer", "the model")[-1]
        found = attentions(sides, guide.model, config.layers, "hybrid_attention.layers", f"teacher {guide.name}")
        alike = [each for each in found if (each.sizes, each.windows) == (self.ours.sizes, self.ours.windows)]
        if not alike:
            raise InputError(
                f"layer {self.ours.name} of the model has {_sizes(self.ours)}, layer "
                f"{found[-1].name} of teacher {guide.name} {_sizes(found[-1])}; heads and tokens have to be "
                "the same (num_heads changes none of a model's parameters)"
            )
        self.measured: dict[str, float] = {}
        self.theirs = alike[0] if len(alike) == 1 else self._chosen(config, sides, guide, alike)
        self.student_layers, self.teacher_layers = [self.ours.name], {guide.name: [self.theirs.name]}
        self.guide = guide.name

    def forward(self, student: Seen, teachers: Mapping[str, Seen], batch: Batch, update: int) -> Tensor:
        """Return weight · KL of the attention maps."""
        received = student.received[self.ours.name], teachers[self.guide].received[self.theirs.name]
        ours, theirs = (
            layer.scores(tensor_of(each, layer.name))
            for layer, each in zip((self.ours, self.theirs), received, strict=True)
        )
        return self.weight * attention_loss(ours, theirs.detach())

    def _chosen(
        self, config: HybridAttentionConfig, sides: Sides, guide: Guide, found: Sequence[Attention]
    ) -> Attention:
        if config.nmi is None and any(each.windows > 1 for each in found):
            raise InputError(
                f"teacher {guide.name} looks at windows, where the published NMI of {HYBRID} says "
                "nothing; name one layer in layers, or give nmi"
            )
        target = HYBRID if config.nmi is None else config.nmi
        self.measured = measured(sides, guide, found, config.images)
        chosen = min(found, key=lambda each: abs(self.measured[each.name] - target))
        listed = ", ".join(f"{name} {value:.3f}" for name, value in self.measured.items())
        say(f"NMI of the attention of teacher {guide.name}: {listed}; nearest to {target:g}: {chosen.name}")
        return chosen


def measured(sides: Sides, guide: Guide, layers: Sequence[Attention], images: int) -> dict[str, float]:
    """Return the normalised mutual information of attention layers by name, averaged over heads, windows and images.

    Leading tokens, such as the class token, are left out: what remains of each row is brought to a sum of 1.
    """
    assert guide.model is not None
    sums = {each.name: torch.zeros((), dtype=torch.float64) for each in layers}
    count = 0
    for batch in sides.samples(images):
        for part in batch.split(32):
            seen = sides.look(guide.model, list(sums), part)
            count += len(part)
            for each in layers:
                places = each.scores(tensor_of(seen.received[each.name], each.name))[..., each.prefix :, each.prefix :]
                found = normalized_mutual_information(places.softmax(-1))
                sums[each.name] += found.mean(1).double().cpu().sum() / each.windows
    return {name: float(value) / count for name, value in sums.items()}


def _sizes(layer: Attention) -> str:
    heads, tokens, _ = layer.sizes
    return f"{heads} heads over {tokens} tokens" + (f" in {layer.windows} windows" if layer.windows > 1 else "")
