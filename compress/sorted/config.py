"""The section `sort` of a recipe: which nested sub-networks there are, and how all of them are trained at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from compress.core.sections import NameOf
from compress.criteria import criterion_unfit, unit_criteria
from compress.distill.losses import OutputDistillConfig
from compress.graph.scope import Unit
from compress.sorted.sampling import SamplingSection, Sandwich, Uniform
from compress.sorted.step import Spend
from compress.training.config import LearningConfig
from evaluators.tasks import Task
from spaces.channels.choices import By
from spaces.channels.space import ChannelsConfig

Share = Annotated[float, Field(gt=0, le=1)]


class SortConfig(LearningConfig):
    """Train a network and its nested sub-networks at once ("SortedNet", Valipour et al. 2023)."""

    widths: list[Share] = Field(
        [0.25, 0.5, 0.75, 1.0], min_length=1, description="fractions of every width that sub-networks have"
    )
    units: list[Unit] = Field(
        ["channels", "heads", "mlp"], min_length=1, description="kinds of units that sub-networks have fewer of"
    )
    depth: bool | list[Share] = Field(
        True,
        description="whether sub-networks have fewer residual blocks: any number of each stage's, or one of these "
        "shares; true changes nothing where a model has none that it can do without",
    )
    by: By = Field("kind", description="which widths are one dimension: a stage's, a kind's, the model's, a layer's")
    align: int = Field(1, ge=1, description="widths of channels and MLPs are multiples of this, and the full width")
    min_width: int = Field(1, ge=1, description="channels or MLP units that every layer keeps at least")
    include: list[str] = Field([], description="globs over layers; if given, only these are narrowed")
    exclude: list[str] = Field([], description="globs over layers and blocks that stay as they are")
    members: Literal["all", "diagonal"] | int | list[dict[str, Any]] = Field(
        "all",
        description="the family: all combinations, those where all dimensions shrink together, so many (these and "
        "others of every size), or a list of architectures",
    )
    order: Annotated[str, NameOf(unit_criteria)] = Field(
        "magnitude", description="the pruning criterion whose best units come first"
    )
    calibration_batches: int = Field(4, ge=1, description="training batches for criteria that need data")
    sampling: SamplingSection = Field(Uniform(), description="which members an update trains")
    per_update: int = Field(2, ge=1, description="members of an update, whose gradients are averaged")
    data: Literal["repeat", "split"] = Field(
        "repeat", description="each member of an update sees the whole batch (repeat) or a part of it (split)"
    )
    distill: OutputDistillConfig | None = Field(
        None, description="how the other members of an update learn from the full network; null: from labels alone"
    )
    bn_recalibrate: int = Field(20, ge=0, description="batches that estimate each member's batch-norm statistics")
    timed: int = Field(
        12, ge=2, description="so many members near the front are timed, where the recipe has a section latency"
    )

    @field_validator("widths")
    @classmethod
    def _with_the_full_network(cls, widths: list[float]) -> list[float]:
        if 1.0 not in widths:
            raise ValueError("the full network is missing; add 1.0")
        return widths

    @field_validator("depth")
    @classmethod
    def _with_all_blocks(cls, depth: bool | list[float]) -> bool | list[float]:
        if isinstance(depth, list) and 1.0 not in depth:
            raise ValueError("the full network is missing; add 1.0")
        return depth

    @field_validator("per_update")
    @classmethod
    def _for_both_ends(cls, count: int, beside: ValidationInfo) -> int:
        if isinstance(beside.data.get("sampling"), Sandwich) and count < 2:
            raise ValueError(f"sampling sandwich draws the largest and the smallest; got {count}; allowed 2 and more")
        return count

    @field_validator("distill")
    @classmethod
    def _with_the_full_network_first(
        cls, distill: OutputDistillConfig | None, beside: ValidationInfo
    ) -> OutputDistillConfig | None:
        fits = isinstance(beside.data.get("sampling", Sandwich()), Sandwich) and beside.data.get("data") != "split"
        if distill is not None and not fits:
            raise ValueError("members learn from the full network; allowed with sampling sandwich and data repeat")
        return distill

    @field_validator("keep")
    @classmethod
    def _not_the_best(cls, keep: str) -> str:
        if keep == "best":
            raise ValueError("best needs the accuracy of one network, and a family is many; allowed: last")
        return keep

    @field_validator("patience")
    @classmethod
    def _without_patience(cls, patience: int | None) -> int | None:
        if patience:
            raise ValueError("needs the accuracy of one network, and a family is many; allowed: null")
        return patience

    def unfit(self, task: Task) -> str | None:
        """Return what the task lacks: a loss, or one tensor of outputs, by which cut members are checked."""
        if not task.gives_tensor and task.has_loss:
            return f"members are held against what is cut out by one tensor of outputs, and task {task.name} gives none"
        return super().unfit(task) or criterion_unfit(self.order, task)

    @property
    def spend(self) -> Spend:
        """How the members of an update share a batch."""
        return self.data

    def space(self) -> ChannelsConfig:
        """Return the options of the space of sub-networks."""
        return ChannelsConfig(
            widths=self.widths,
            align=self.align,
            min_width=self.min_width,
            units=self.units,
            depth=self.depth,
            by=self.by,
            include=self.include,
            exclude=self.exclude,
        )
