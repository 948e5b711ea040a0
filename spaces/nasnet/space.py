"""The NASNet space (Zoph et al. 2018, "Learning Transferable Architectures for Scalable Image Recognition")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.drawing import draw_cells
from spaces.layers import Layer
from spaces.nasnet.canonical import canonical_blocks
from spaces.nasnet.code import alphabets, decode, encode
from spaces.nasnet.costs import layers
from spaces.nasnet.genotype import CELLS, BlockGenotype, CellGenotype, Genotype
from spaces.nasnet.network import NASNet
from spaces.nasnet.operations import initialize
from spaces.nasnet.options import NASNetConfig
from spaces.nasnet.pictures import block_graph, cell_graph, network_graph
from spaces.nasnet.presets import PRESETS
from spaces.nasnet.skeleton import auxiliary_size, map_sizes
from spaces.nasnet.supernet import NASNetSupernet
from spaces.registry import spaces
from spaces.space import Preset, Space, task_of


@spaces.register("nasnet")
class NASNetSpace(Space):
    """Two cells of five blocks with 13 operations, stacked to any depth and width.

    A published code is a list of 50 integers (`spaces.nasnet.code`) or a genotype as a mapping (`Genotype.to_dict`).
    """

    Config = NASNetConfig
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    config: NASNetConfig

    def __init__(self, config: NASNetConfig) -> None:
        super().__init__(config)
        classes, img_size = (10, 32) if config.stem == "cifar" else (1000, 224)
        self.default_task = task_of(classes, 3, config.img_size or img_size)

    def genotype(self, arch: Mapping[str, Choice]) -> Genotype:
        """Return the cells of `arch` with the states that they concatenate."""
        return Genotype.from_choices(self.check(arch), self.config.concat_lists)

    def from_code(self, code: Any) -> dict[str, Choice]:
        """Return the choices of a list of 50 integers, or of a genotype or its mapping.

        Raises InputError naming the position that is wrong, or a concat list that is not this space's.
        """
        if isinstance(code, Mapping):
            code = Genotype.from_dict(code)
        if isinstance(code, Genotype):
            return self._from_genotype(code)
        if isinstance(code, str) or not isinstance(code, Sequence):
            raise InputError(f"a NASNet code is a list of 50 integers or a genotype; got {code!r}")
        return decode(code)

    def to_code(self, arch: Mapping[str, Choice]) -> list[int]:
        """Return 50 integers."""
        return encode(self.check(arch))

    def parse(self, value: Any) -> Architecture:
        """Return the architecture of what `Space.parse` takes, or of a genotype as a mapping."""
        genotype = isinstance(value, Mapping) and set(CELLS) <= set(value)
        return self.check(self.from_code(value)) if genotype else super().parse(value)

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return the encoding that all share which differ in the order of blocks or of a block's slots only."""
        genotype, config = self.genotype(arch), self.config
        idle = config.operations[0]
        filler = BlockGenotype(0, 0, idle, idle, config.combines[0])
        cells = {
            kind: CellGenotype(
                canonical_blocks(genotype.cell(kind), config.concat is not None, filler), genotype.cell(kind).concat
            )
            for kind in CELLS
        }
        return Architecture(Genotype(**cells).choices())

    def draw(self, arch: Mapping[str, Choice] | None = None, img_size: int | None = None) -> str:
        """Return an SVG of the two cells, or of what a block and the network look like."""
        config = self.config
        title = f"NASNet, N = {config.cells_per_stage}, F = {config.filters}, {config.stem} stem"
        if arch is None:
            subtitle = f"{self.count():.2e} pairs of cells"
            return draw_cells(title, subtitle, [block_graph(config), network_graph(config)])
        cost, genotype = self.cost(arch, self.task(img_size=img_size)), self.genotype(arch)
        side = self.task(img_size=img_size).img_size
        subtitle = f"{cost['params'] / 1e6:.2f} M parameters, {cost['macs'] / 1e6:.1f} M MACs at {side} pixels"
        return draw_cells(title, subtitle, [cell_graph(f"{kind} cell", genotype.cell(kind)) for kind in CELLS])

    def _decisions(self) -> list[Decision]:
        config = self.config
        allowed = {"op1": config.operations, "op2": config.operations, "combine": config.combines}
        return [
            Decision(name, tuple(allowed.get(name.rsplit(".", 1)[1], alphabet)))
            for name, alphabet in alphabets().items()
        ]

    def _build(self, arch: Architecture, task: Task) -> NASNet:
        self._check_task(task)
        network = NASNet(self.config, self.genotype(arch), task)
        initialize(network)
        return network

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        self._check_task(task)
        return layers(self.config, self.genotype(arch), task)

    def _supernet(self, task: Task) -> NASNetSupernet:
        self._check_task(task)
        return NASNetSupernet(self, self.config, task)

    def _check_task(self, task: Task) -> None:
        if map_sizes(self.config, task.img_size)[0] < 1:
            raise InputError(f"the imagenet stem needs images of at least 3 pixels; got img_size {task.img_size}")
        if self.config.auxiliary and auxiliary_size(self.config, task.img_size) < 1:
            raise InputError(
                f"the auxiliary head needs a map of at least 5x5 pixels after stage 2; img_size {task.img_size} is too "
                "small"
            )

    def _from_genotype(self, genotype: Genotype) -> dict[str, Choice]:
        choices = genotype.choices()
        own = self.genotype(choices)
        for kind in CELLS:
            got, expected = genotype.cell(kind).concat, own.cell(kind).concat
            if got != expected:
                raise InputError(
                    f"{kind}.concat: got {list(got)}; in this space the cell concatenates {list(expected)} (option "
                    "concat: null for loose ends, or lists)"
                )
        return choices
