"""scikit-learn's digits in made scenes, with a box around every digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from evaluators.datasets.dataset import datasets
from evaluators.datasets.digit_scenes import Boxes, DigitScenes, sample_set
from evaluators.datasets.sample_sets import SampleSet

if TYPE_CHECKING:
    from evaluators.tasks.task import TaskConfig


@datasets.register("digits_detection")
class DigitsDetectionConfig(DigitScenes):
    """Made images: scikit-learn's real digits pasted on textures, with a box around each; always at hand.

    Boxes are corners in pixels; labels are 1 to 10 for the digits 0 to 9. Every image has at least one.
    """

    name: Literal["digits_detection"]

    def kinds(self) -> tuple[str, ...]:
        """Return boxes."""
        return ("boxes",)

    def open(self, task: TaskConfig) -> SampleSet:
        """Make the images, or take those that were made before."""
        return sample_set(*self.made(), Boxes)
