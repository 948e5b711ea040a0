"""A trained network of the channel space made narrower: the units that matter most stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from compress.criteria.score import score_units
from compress.criteria.unit_criterion import Batches, ScoringData
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import make_plan
from compress.graph.select import strongest
from evaluators.tasks import Task
from spaces.architecture import Choice
from spaces.channels.choices import blocks_dropped, units_kept
from spaces.channels.space import ChannelSpace


class Narrower:
    """Scores the units of `module` once, for any number of narrower networks.

    Args:
        space: of the network.
        module: the trained network of `arch` for `task`.
        arch: an architecture of the space.
        task: what the network is for.
        criterion: of structure pruning, such as `magnitude`.
        batches: yields samples, for criteria that need data.

    Raises:
        InputError: the criterion is unknown or cannot score this network.
    """

    def __init__(
        self,
        space: ChannelSpace,
        module: nn.Module,
        arch: Mapping[str, Choice],
        task: Task,
        criterion: str,
        batches: Batches | None = None,
    ) -> None:
        self.space, self.module, self.arch = space, module, space.check(arch)
        device = next(module.parameters()).device
        images = torch.zeros(1, task.in_chans, task.img_size, task.img_size, device=device)
        graph = checked(module, build_graph(module, images), images)
        decided = units_kept(space.widths, self.arch)
        graph = replace(graph, groups=tuple(group for group in graph.groups if group.name in decided))
        self.graph, self.scores = score_units(module, graph, criterion, ScoringData(graph, batches, device))

    def narrowed(self, arch: Mapping[str, Choice]) -> nn.Module:
        """Return the network of `arch`, which is nowhere wider, with the best units of the one at hand."""
        arch = self.space.check(arch)
        units = units_kept(self.space.widths, arch)
        kept = {name: strongest(scores, units[name]) for name, scores in self.scores.items() if name in units}
        gone = set(blocks_dropped(self.space.stages, self.arch))
        dropped = tuple(block for block in blocks_dropped(self.space.stages, arch) if block not in gone)
        plan = make_plan(self.module, self.graph, kept, dropped=dropped, align=self.space.config.align)
        return apply(plan, self.module)
