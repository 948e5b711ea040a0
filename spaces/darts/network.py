"""A DARTS network: the stem, cells that each read the last two outputs, and the classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.candidates import total
from spaces.darts.genotype import NODES, edges
from spaces.darts.operations import Norm, fitting, halving, operation, stem
from spaces.darts.options import DARTSConfig
from spaces.darts.skeleton import Site, auxiliary_site, auxiliary_size, sites, stem_channels
from spaces.nasnet.cells import DropPath
from spaces.nasnet.operations import ConvNorm
from spaces.nasnet.parts import AUXILIARY_WIDTHS, AuxiliaryHead

MakeEdges = Callable[[Site], Mapping[str, nn.Module]]
"""Makes what stands on the edges of a cell, by their names."""


def norm_of(config: DARTSConfig) -> Norm:
    """Return what makes the batch norms of cells."""
    return lambda channels: nn.BatchNorm2d(channels, affine=config.norm == "affine")


def edge_name(state: int, node: int) -> str:
    """Return the name of an edge within its cell."""
    return f"{state}_{node}"


def operation_at(name: str, state: int, site: Site, config: DARTSConfig) -> nn.Module:
    """Return an operation on a state of the cell at `site`."""
    stride = site.stride if state < 2 else 1
    return operation(name, site.channels, stride, norm_of(config), norm_pools=config.norm == "search")


class Cell(nn.Module):
    """Both inputs at the cell's width, four nodes of which each adds up its edges, and the nodes side by side."""

    def __init__(self, site: Site, config: DARTSConfig, made: Mapping[str, nn.Module]) -> None:
        super().__init__()
        norm, (first, second) = norm_of(config), site.inputs
        self.prepare0 = (halving if site.halves else fitting)(first, site.channels, norm)
        self.prepare1 = fitting(second, site.channels, norm)
        self.edges = nn.ModuleDict(made)
        self.drop_path = DropPath(config.drop_path_keep)
        self.stride = site.stride

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map the outputs of the last two cells, the older one first, to (N, 4C, H / stride, W / stride)."""
        states = [self.prepare0(first), self.prepare1(second)]
        for node in NODES:
            terms = [self._edge(name, states[state]) for state, name in self._into(node)]
            states.append(total(terms) if terms else states[0][:, :, :: self.stride, :: self.stride] * 0)
        return torch.cat(states[2:], 1)

    def _into(self, node: int) -> list[tuple[int, str]]:
        """Return the states that a node reads, with the names of the edges."""
        return [(state, edge_name(state, node)) for state, _ in edges(node) if edge_name(state, node) in self.edges]

    def _edge(self, name: str, x: Tensor) -> Tensor:
        edge = self.edges[name]
        y: Tensor = edge(x)
        return y if isinstance(edge, nn.Identity) else self.drop_path(y)


class DARTSNetwork(nn.Module):
    """The network whose cells have the edges that `make` gives; cells are of class `cell`.

    Attributes:
        auxiliary_weight: what the loss of the auxiliary logits counts beside that of the others.
    """

    auxiliary_weight = 0.4

    def __init__(self, config: DARTSConfig, task: Task, make: MakeEdges, cell: type[Cell] = Cell) -> None:
        super().__init__()
        channels = stem_channels(config)
        if config.stem == "cifar":
            self.stem = nn.ModuleList([stem(task.in_chans, channels, 3, 1)])
        else:
            halved = nn.Sequential(
                stem(task.in_chans, channels // 2, 3, 2), nn.ReLU(), stem(channels // 2, channels, 3, 2)
            )
            self.stem = nn.ModuleList([halved, nn.Sequential(nn.ReLU(), stem(channels, channels, 3, 2))])
        places = sites(config, task.img_size)
        self.cells = nn.ModuleList(cell(site, config, make(site)) for site in places)
        self.auxiliary_site = auxiliary_site(config)
        self.auxiliary_head = _auxiliary_head(config, task) if config.auxiliary else None
        self.classifier = nn.Linear(places[-1].out_channels, task.num_outputs)

    def set_training_progress(self, fraction: float) -> None:
        """Say which share of training is over (0 to 1): outputs of operations are dropped the more often."""
        for module in self.modules():
            if isinstance(module, DropPath):
                module.progress = min(1.0, max(0.0, fraction))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (N, in_chans, H, W) to logits (N, classes), in training with the auxiliary head to both logits."""
        first = second = images
        for layer in self.stem:
            first, second = second, layer(second)
        if len(self.stem) == 1:
            first = second
        auxiliary = None
        for index, cell in enumerate(self.cells):
            first, second = second, cell(first, second)
            if self.auxiliary_head is not None and self.training and index == self.auxiliary_site:
                auxiliary = self.auxiliary_head(second)
        logits: Tensor = self.classifier(second.mean((2, 3)))
        return logits if auxiliary is None else (logits, auxiliary)


def _auxiliary_head(config: DARTSConfig, task: Task) -> AuxiliaryHead:
    """Return the auxiliary head; for ImageNet it was published with a smaller stride and without its last norm."""
    narrow, wide = AUXILIARY_WIDTHS
    size = auxiliary_size(config, task.img_size)
    channels = sites(config, task.img_size)[auxiliary_site(config)].out_channels
    project = ConvNorm(nn.Conv2d(channels, narrow, 1, bias=False), nn.BatchNorm2d(narrow))
    mix = nn.Conv2d(narrow, wide, size, bias=False)
    cifar = config.stem == "cifar"
    last = ConvNorm(mix, nn.BatchNorm2d(wide)) if cifar else mix
    return AuxiliaryHead(project, last, nn.Linear(wide, task.num_outputs), 3 if cifar else 2)
