"""A NASNet: the stem, cells that each read the last two outputs, and the classifier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.nasnet.cells import Cell
from spaces.nasnet.genotype import Genotype
from spaces.nasnet.options import NASNetConfig
from spaces.nasnet.parts import Parts
from spaces.nasnet.skeleton import auxiliary_position, auxiliary_size, keep_probability, sites, sources


class NASNet(nn.Module):
    """The network of `genotype`; it takes images of any size, but with an auxiliary head only those of the task.

    Attributes:
        auxiliary_weight: what the loss of the auxiliary logits counts beside that of the others.
    """

    auxiliary_weight = 0.4

    def __init__(self, config: NASNetConfig, genotype: Genotype, task: Task, parts: Parts | None = None) -> None:
        super().__init__()
        parts = parts or Parts(config)
        maps = sources(config, genotype)
        self.stem = parts.stem(task.in_chans)
        self.cells = nn.ModuleDict()
        self.wiring = []
        for index, site in enumerate(sites(config)):
            first, second = site.inputs
            keep = keep_probability(config, index)
            cell = Cell(site, genotype.cell(site.kind), maps[first], maps[second], keep, parts)
            self.cells[site.name] = cell
            self.wiring.append(site.inputs)
        self.auxiliary_position = auxiliary_position(config)
        self.auxiliary_head = None
        if config.auxiliary:
            size = auxiliary_size(config, task.img_size)
            self.auxiliary_head = parts.auxiliary_head(maps[self.auxiliary_position], size, task.num_outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = parts.classifier(maps[-1], task.num_outputs)

    def set_training_progress(self, fraction: float) -> None:
        """Say which share of training is over (0 to 1): paths are dropped the more often."""
        for cell in self.cells.values():
            assert isinstance(cell, Cell)
            cell.drop_path.progress = min(1.0, max(0.0, fraction))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (N, in_chans, H, W) to logits (N, classes), in training with the auxiliary head to both logits."""
        maps = {0: self.stem(images)}
        auxiliary = None
        for position, (cell, (first, second)) in enumerate(zip(self.cells.values(), self.wiring, strict=True), 1):
            maps[position] = cell(maps[first], maps[second])
            maps.pop(position - 3, None)  # no later cell reads it
            if self.auxiliary_head is not None and self.training and position == self.auxiliary_position:
                auxiliary = self.auxiliary_head(maps[position])
        logits: Tensor = self.classifier(self.dropout(F.relu(maps[len(self.wiring)]).mean((2, 3))))
        return logits if auxiliary is None else (logits, auxiliary)
