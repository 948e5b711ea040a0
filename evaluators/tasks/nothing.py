"""No task in particular: a model that is pruned, exported and measured, and that nobody here can judge or train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from compress.core.errors import InputError
from evaluators.datasets.batch import Batch
from evaluators.tasks.task import Meter, Metric, Shape, Task, TaskConfig, tasks


@tasks.register("none")
class NoTaskConfig(TaskConfig):
    """Nothing in particular: no loss and no metrics; a model may give anything."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    name: Literal["none"] = Field("none", description="what the model is for")

    def bind(self, num_outputs: int, input_size: Shape) -> NoTask:
        """Return the task, which asks nothing of a model."""
        return NoTask(0, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        """Return None: there is no head to be wide."""
        return None


@dataclass(frozen=True)
class NoTask(Task):
    """Calls models, and does nothing with what they give."""

    num_outputs: int = 0
    input_size: Shape = ()
    config: TaskConfig = field(default_factory=NoTaskConfig)

    form = "anything"
    gives_tensor = False
    has_loss = False

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Raise InputError: there is none."""
        raise InputError("task none has no loss; name what the model is for, or leave out what trains it or needs one")

    def tensor(self, outputs: Any) -> Tensor:
        """Raise InputError: nothing stands for outputs that nobody knows."""
        raise InputError("task none says not which of a model's outputs count; name what the model is for")

    def meter(self) -> Meter:
        """Return what sums up nothing."""
        return _Meter()


class _Meter(Meter):
    """No metrics."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Pass the outputs over."""

    def compute(self) -> dict[str, float | None]:
        """Return no metrics."""
        return {}
