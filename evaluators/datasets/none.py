"""No data at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from evaluators.datasets.dataset import DataFacts, Dataset, datasets

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("none")
class NoneConfig(Dataset):
    """No data: prune, export and measure; accuracies are null."""

    absent: ClassVar[bool] = True
    name: Literal["none"]
    image_size: int | None = Field(None, ge=4, le=4096, description="pixels a side; null: the model's own")

    def describe(self) -> DataFacts:
        """Return what the recipe says."""
        return DataFacts(None, self.image_size, None)

    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Return None."""
