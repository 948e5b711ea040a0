"""The stand-alone network of a path."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.hytra.config import HyTraConfig
from spaces.hytra.layer_plans import LayerPlan
from spaces.hytra.operations import Residual, Style, initialise, make_patches, make_stem, style_of


class HyTraNet(nn.Module):
    """Stem, patches (search version), layers, global average, classifier."""

    def __init__(self, config: HyTraConfig, plan: Sequence[LayerPlan], task: Task) -> None:
        super().__init__()
        style = style_of(config)
        first = plan[0]
        self.stem = make_stem(config, task.in_chans, style)
        self.patches: nn.Module = nn.Identity()
        if first.patch:
            self.patches = make_patches(config.stem_channels, first.in_channels, first.patch)
        self.layers = nn.Sequential(*(_layer(row, style) for row in plan))
        self.head = nn.Linear(plan[-1].channels, task.num_outputs)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, classes)."""
        features = self.layers(self.patches(self.stem(images)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _layer(row: LayerPlan, style: Style) -> nn.Module:
    if row.operation == "empty":
        conv = nn.Conv2d(row.in_channels, row.channels, 3, row.stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(row.channels), style.activation())
    return Residual(row.operation, row.in_channels, row.channels, row.stride, style, row.drop_path)
