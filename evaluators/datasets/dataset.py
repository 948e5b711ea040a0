"""What a data set is: a section `data` of a recipe that says what a model has to fit, and opens batches for it.

A new data set is one new file in this package, or a module of your own: a subclass of `Dataset` with its options, a
field `name: Literal["..."]`, `describe` and `load`, entered with `@datasets.register("name")`. Sets of images that fit
in memory subclass `evaluators.datasets.arrays.Arrays`, sets of image files `evaluators.datasets.image_files.Files`;
both then need `open` alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.sections import OneOf
from evaluators.datasets.loaders import Data

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@dataclass(frozen=True)
class DataFacts:
    """What a model has to fit; None where the data leaves it to the model.

    Attributes:
        num_outputs: how many things the targets tell apart, such as classes; see `TaskConfig.bind`.
        image_size: pixels a side.
        channels: of an image.
        images: whether models take images at all.
    """

    num_outputs: int | None
    image_size: int | None
    channels: int | None
    images: bool = True


class Dataset(Config):
    """The section `data` of a recipe.

    Where it has the fields `image_size` (pixels a side) and `channels`, and they are not None, models are built for
    them.
    """

    absent: ClassVar[bool] = False
    """Whether there is no data, so that nothing can be trained or evaluated."""
    name: str

    def kinds(self) -> tuple[str, ...]:
        """Return which kinds of targets the set can give (see `TaskConfig.targets`): the one that a task asks for."""
        return ("classes",)

    def misfit(self, task: TaskConfig) -> str | None:
        """Return, as a sentence, that the targets are not what `task` learns from; None where they are."""
        if self.absent or task.targets is None or task.targets in self.kinds():
            return None
        return (
            f"{self.name} has {' or '.join(self.kinds())} as targets, and task {task.name} learns from {task.targets}"
        )

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield (key, path) of the files and folders that have to be there."""
        return iter(())

    @abstractmethod
    def describe(self) -> DataFacts:
        """Return what a model has to fit, before any model exists.

        The image size is the recipe's, else the stored images'; folders of images of all sizes have none of their own.
        Raises InputError for data that is absent or wrong.
        """

    @abstractmethod
    def load(
        self,
        task: TaskConfig,
        preprocessing_hint: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> Data | None:
        """Open the data for `task`, with the preprocessing of a model; None where it is `absent`.

        Args:
            task: which `bind` makes fit the data.
            preprocessing_hint: the model's `pretrained_cfg` (see `spaces.zoo.BuiltModel`).
            image_size: pixels a side, where the section names none. Without it the size is the model's where it works
                at no other or the images have none of their own, else the images'.
            seed: of the order of training samples and of what augments them.

        Raises:
            InputError: the data is absent or wrong.
        """


datasets: Registry[type[Dataset]] = Registry("data set", home="evaluators.datasets", base=Dataset)

DataConfig = Annotated[Dataset, OneOf(datasets, "name")]
"""The section `data` of a recipe: the config of one of the data sets, told apart by `name`."""
