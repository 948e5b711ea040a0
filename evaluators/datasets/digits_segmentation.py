"""scikit-learn's digits in made scenes, with a class for every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from evaluators.datasets.dataset import datasets
from evaluators.datasets.digit_scenes import DigitScenes, Masks, sample_set
from evaluators.datasets.sample_sets import SampleSet

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("digits_segmentation")
class DigitsSegmentationConfig(DigitScenes):
    """Made images: scikit-learn's real digits pasted on textures, with a mask of classes; always at hand.

    Masks hold 0 for the background and 1 to 10 for the digits 0 to 9.
    """

    name: Literal["digits_segmentation"]

    def kinds(self) -> tuple[str, ...]:
        """Return masks."""
        return ("masks",)

    def open(self, task: TaskConfig) -> SampleSet:
        """Make the images, or take those that were made before."""
        return sample_set(*self.made(), Masks)
