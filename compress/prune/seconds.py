"""About how long structure pruning takes, told before it begins from the time of one evaluation."""

from __future__ import annotations

from torch import nn

from compress.latency_model.survey import SECONDS
from compress.prune.by_latency import JUDGED, JUDGED_SHARE, READ
from compress.prune.repair import IMAGES
from compress.prune.structure_config import StructureConfig
from evaluators.datasets import Data

CHOICES = 3
"""Widths, and blocks, that are tried for each layer with weights where a latency decides."""
SHARE = 0.5
"""Of the model, that runs for a choice: from the block on in which it begins."""
PASSES = 6
"""Forward passes over its images that compensation takes as long as."""
ROUNDS = 2
"""Times that whole networks are timed until a latency is met, each the longer part of `SECONDS` for each budget."""


def pruning_seconds(model: nn.Module, config: StructureConfig, data: Data | None, evaluation: float) -> float:
    """Return about how many seconds a structure pruning takes.

    Args:
        model: that is pruned.
        config: the settings.
        data: the recipe's; None without.
        evaluation: seconds of one evaluation on the test images, 0 without any.
    """
    budgets = max(1, len(config.latencies))
    timing = 2 * SECONDS + ROUNDS * budgets * SECONDS if config.latencies else 0.0
    if data is None or data.train is None or data.test is None or not evaluation:
        return timing + evaluation * budgets
    image, images = evaluation / data.test.num_samples, data.train.num_samples
    passes = float(budgets * PASSES * min(IMAGES, images)) if config.compensate else 0.0
    if config.latencies:
        layers = sum(parameter.dim() > 1 for parameter in model.parameters())
        passes += CHOICES * layers * SHARE * min(JUDGED, JUDGED_SHARE * images)
        passes += PASSES * min(READ, images)
    return timing + evaluation * budgets + image * passes
