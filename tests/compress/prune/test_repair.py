"""Compensation is judged on images that it was not fitted to."""

from __future__ import annotations

import pytest
import torch

from compress.prune.repair import _images
from evaluators.datasets import Batch


class Images:
    """So many images in batches, with their numbers."""

    def __init__(self, count: int, batch: int) -> None:
        self.numbers = torch.arange(count).split(batch)

    def __len__(self) -> int:
        return len(self.numbers)

    def epoch(self, number: int):
        return (Batch(torch.zeros(len(each), 1, 2, 2), each, each) for each in self.numbers)


@pytest.mark.parametrize("images", [Images(10, 16), Images(20, 10), Images(90, 10), Images(2, 1)])
def test_no_image_is_both_fitted_to_and_judged_by(images: Images) -> None:
    fitted, judged = ({int(n) for batch in part for n in batch.targets} for part in _images(images))  # type: ignore[arg-type]
    assert fitted and judged and not fitted & judged
