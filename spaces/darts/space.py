"""The DARTS space: two cells of four nodes, each the sum of two of seven operations on two earlier states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.darts.canonical import canonical_nodes
from spaces.darts.costs import layers
from spaces.darts.genotype import CELLS, NODES, OPERATIONS, Genotype, pairs, parse
from spaces.darts.network import DARTSNetwork, edge_name, operation_at
from spaces.darts.options import DARTSConfig
from spaces.darts.pictures import cell_graph, network_graph, space_graph
from spaces.darts.presets import PRESETS
from spaces.darts.skeleton import auxiliary_size
from spaces.darts.supernet import DARTSSupernet
from spaces.drawing import draw_cells
from spaces.layers import Layer
from spaces.registry import spaces
from spaces.space import Preset, Space, task_of


@spaces.register("darts")
class DARTSSpace(Space):
    """Two cells as in Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", stacked to any depth.

    A published code is the text of a genotype: `Genotype(normal=[('sep_conv_3x3', 0), ...], ...)`.
    """

    Config = DARTSConfig
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    config: DARTSConfig

    def __init__(self, config: DARTSConfig) -> None:
        super().__init__(config)
        self.default_task = task_of(10, 3, 32) if config.stem == "cifar" else task_of(1000, 3, 224)

    def from_code(self, code: Any) -> dict[str, Choice]:
        """Return the choices of a genotype's text."""
        return parse(code).choices()

    def to_code(self, arch: Mapping[str, Choice]) -> str:
        """Return the genotype's text, as the published code prints it."""
        return str(Genotype.from_choices(self.check(arch)))

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return the encoding that all share which differ in the order of nodes only."""
        genotype = Genotype.from_choices(arch)
        return Architecture(Genotype(**{kind: canonical_nodes(genotype.cell(kind)) for kind in CELLS}).choices())

    def draw(self, arch: Mapping[str, Choice] | None = None, img_size: int | None = None) -> str:
        """Return an SVG of the two cells, or of what a cell and the network look like."""
        config, task = self.config, self.task(img_size=img_size)
        title = f"DARTS, {config.layers} cells, C = {config.channels}, {config.stem} stem"
        if arch is None:
            subtitle = f"{self.count():.2e} pairs of cells"
            return draw_cells(title, subtitle, [space_graph(), network_graph(config, task.img_size)])
        cost, genotype = self.cost(arch, task), Genotype.from_choices(self.check(arch))
        subtitle = f"{cost['params'] / 1e6:.2f} M parameters, {cost['macs'] / 1e6:.1f} M MACs at {task.img_size} pixels"
        return draw_cells(title, subtitle, [cell_graph(kind, genotype) for kind in CELLS])

    def _decisions(self) -> Sequence[Decision]:
        found = []
        for kind in CELLS:
            for node in NODES:
                if len(pairs(node)) > 1:
                    found.append(Decision(f"{kind}.node{node}.inputs", pairs(node)))
                found += [Decision(f"{kind}.node{node}.op{slot}", OPERATIONS) for slot in (1, 2)]
        return found

    def _build(self, arch: Architecture, task: Task) -> DARTSNetwork:
        self._check_task(task)
        genotype = Genotype.from_choices(arch)
        return DARTSNetwork(
            self.config,
            task,
            lambda site: {
                edge_name(*ends): operation_at(name, ends[0], site, self.config)
                for ends, name in genotype.operations(site.kind).items()
            },
        )

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        self._check_task(task)
        return layers(self.config, Genotype.from_choices(arch), task)

    def _supernet(self, task: Task) -> DARTSSupernet:
        self._check_task(task)
        return DARTSSupernet(self, task)

    def _check_task(self, task: Task) -> None:
        if self.config.auxiliary and auxiliary_size(self.config, task.img_size) < 1:
            raise InputError(
                "the auxiliary head needs a map of at least 5x5 pixels behind the second halving; img_size "
                f"{task.img_size} is too small"
            )
