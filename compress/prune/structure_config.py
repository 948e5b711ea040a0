"""What a recipe says of structure pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from compress.core.config import Config
from compress.core.sections import NameOf, OptionsOf
from compress.criteria import unit_criteria
from compress.criteria.dimap import DimapUnits
from compress.criteria.unit_criterion import UnitCriterion
from compress.graph.scope import Unit
from compress.prune.budget import BudgetConfig
from evaluators.tasks import Task

LATENCY_STEP = 0.05
"""Share of the latency that each of several steps takes away at least: one is met within 3 %."""


class StructureConfig(Config):
    """Removal of whole channels, heads, head widths, MLP units and residual blocks: tensors really shrink."""

    kind: Literal["structure"] = Field(description="tensors shrink")
    criterion: Annotated[str, NameOf(unit_criteria)] = Field("dimap", description="how units are ranked")
    options: Annotated[UnitCriterion, OptionsOf(unit_criteria, "criterion")] = Field(
        DimapUnits(), description="what the criterion leaves open"
    )
    alternatives: list[Annotated[str, NameOf(unit_criteria)]] = Field(
        ["obs"],
        description="criteria that rank a group's units instead where that is measured to lose less (latency budgets)",
    )
    budget: BudgetConfig | None = Field(None, description="what the model may cost afterwards; this or `ratio`")
    budgets: list[BudgetConfig] | None = Field(
        None, min_length=1, max_length=20, description="several latencies, in place of `budget`; the last one goes on"
    )
    ratio: float | None = Field(None, gt=0, lt=1, description="share of all units to remove; this or `budget`")
    allocation: Literal["global", "module", "uniform"] = Field(
        "global", description="units compete across the model, within one kind, or every layer loses the same share"
    )
    units: list[Unit] = Field(
        ["channels", "heads", "head_dims", "mlp"], min_length=1, description="kinds of units that may be removed"
    )
    blocks: float = Field(
        0, ge=0, description="residual blocks to remove first, those that change the stream least: number or share"
    )
    align: Literal["auto"] | int = Field(
        "auto",
        description="widths of channels and MLPs become multiples of this; auto: what the target runs fastest, or "
        "less where no such widths meet the budget",
    )
    min_width: int = Field(1, ge=1, description="channels or MLP units that every layer keeps at least")
    min_fraction: float = Field(0.1, gt=0, le=1, description="share of its units that every layer keeps at least")
    include: list[str] = Field([], description="globs over layers; if given, only these are narrowed")
    exclude: list[str] = Field([], description="globs over layers that stay whole")
    steps: int = Field(1, ge=1, le=100, description="reach the budget in so many steps, fine-tuning between them")
    step_epochs: int = Field(1, ge=1, description="epochs of fine-tuning between two steps")
    calibration_batches: int = Field(4, ge=1, description="training batches for criteria and blocks that need data")
    compensate: bool = Field(
        True, description="refit what reads removed units, on training images, to what the model had there before"
    )
    bn_batches: int = Field(
        20, ge=0, description="without compensation: training batches that batch norms are re-estimated on"
    )
    sensitivity: bool = Field(False, description="scan how much each layer alone can lose, and report it")
    trace_seconds: float = Field(120, gt=0, description="a model that takes longer to trace is refused")
    trace_gigabytes: float = Field(8, gt=0, description="a model that takes more memory to trace is refused")

    @model_validator(mode="before")
    @classmethod
    def _as_written_by_0_1(cls, values: Any) -> Any:
        """Leave out the option that 0.1.0 wrote into every run's recipe.yaml, where the criterion has it not."""
        if not isinstance(values, Mapping) or values.get("criterion", "dimap") == "magnitude":
            return values
        return {**values, "options": {}} if values.get("options") == {"norm": 2} else values

    @field_validator("align")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("align must be auto or at least 1")
        return value

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        goals = ("budget", "budgets", "ratio")
        given = [name for name in goals if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of budget, budgets and ratio; got {', '.join(given) or 'none'}")
        counted = next((each for each in self.budgets or () if not each.timed), None)
        if counted is not None:
            raise ValueError(f"budgets share measurements of time; got {counted}; allowed latency, latency_ms")
        if len({str(each) for each in self.budgets or ()}) < len(self.budgets or ()):
            raise ValueError("budgets has the same one twice")
        return self

    @model_validator(mode="after")
    def _latency_decides(self) -> Self:
        if not self.latencies:
            if self.alternatives not in ([], ["obs"]):
                raise ValueError("alternatives are compared for a budget of latency alone; leave out alternatives")
            return self
        if self.blocks:
            raise ValueError("with a latency budget blocks compete with widths by themselves; leave out blocks")
        if self.allocation != "global":
            raise ValueError("a latency budget allocates by measured time; leave out allocation")
        if self.steps > 1 and (self.budgets or self.latencies[0].kind == "latency_ms"):
            raise ValueError("several steps go to one fraction (budget: {latency: F}); leave out steps")
        most = max(1, int((1 - self.latencies[0].target) / LATENCY_STEP + 1e-9))
        if self.steps > most:
            raise ValueError(
                f"{self.steps} steps to {self.latencies[0]} are less than {LATENCY_STEP:g} of the latency each, less "
                f"than can be met; allowed steps up to {most}"
            )
        return self

    def unfit(self, task: Task) -> str | None:
        """Return what is asked for that the task does not have."""
        if self.latencies and not task.gives_tensor:
            return (
                "a latency is met with the least change of one tensor of outputs, and task "
                f"{task.name} gives none; allowed in budget: macs, params"
            )
        if self.sensitivity and not task.metrics:
            return f"sensitivity tells what a metric loses, and task {task.name} has none; allowed false"
        return None

    @property
    def latencies(self) -> tuple[BudgetConfig, ...]:
        """The budgets that are times; none where MACs, parameters or units are counted."""
        if self.budgets is not None:
            return tuple(self.budgets)
        return (self.budget,) if self.budget is not None and self.budget.timed else ()
