"""The channel space: widths and depths of a given model as decisions, for any model that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import Batches, ScoringData
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.graph import Graph
from compress.graph.plan import Plan, make_plan
from compress.graph.scope import Unit, in_scope
from compress.graph.select import strongest
from compress.graph.widths import WidthRules
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.channels.choices import By, Stage, Width, blocks_dropped, decisions, find_stages, find_widths, units_kept
from spaces.channels.costs import Row, make_rows
from spaces.channels.sorting import Ranking
from spaces.channels.supernet import ChannelSupernet
from spaces.layers import Layer
from spaces.listed import ListedSpace
from spaces.registry import spaces
from spaces.shapes import shown
from spaces.space import Preset
from spaces.supernet import Supernet
from spaces.zoo import BuiltModel, ModelConfig, build_model

_LEAST = 1e-9  # a share of units that no group falls below: `widths` and `min_width` say what is offered


class ChannelsConfig(Config):
    """Options of the channel space."""

    model: ModelConfig = Field(
        default_factory=lambda: ModelConfig(source="builtin", name="cifar_resnet20"),
        description="the model whose widths are decided",
    )
    widths: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], min_length=1, description="fractions of every width that are offered"
    )
    align: int = Field(1, ge=1, description="widths of channels and MLPs are multiples of this, and the full width")
    min_width: int = Field(1, ge=1, description="channels or MLP units that every layer keeps at least")
    units: list[Unit] = Field(
        ["channels", "heads", "head_dims", "mlp"], min_length=1, description="kinds of units whose widths are decided"
    )
    depth: bool | list[Annotated[float, Field(gt=0, le=1)]] = Field(
        False,
        description="decide as well how many residual blocks every stage keeps: any number, or these shares of them",
    )
    by: By = Field("layer", description="which widths are one decision, a fraction: a stage's, a kind's, the model's")
    include: list[str] = Field([], description="globs over layers; if given, only their widths are decided")
    exclude: list[str] = Field([], description="globs over layers and blocks that stay as they are")


@dataclass(frozen=True)
class Base:
    """The whole model for one task: its groups in scope, and its cost by rows."""

    module: nn.Module
    graph: Graph
    rows: tuple[Row, ...]


@spaces.register("channels")
class ChannelSpace(ListedSpace):
    """Widths of a model's groups of coupled channels, heads and MLP units, and the number of blocks of its stages.

    The widths that TAS searches (Dong and Yang, "Network Pruning via Transformable Architecture Search", 0.3 to 1.0
    of every width) are the default. Tied widths are one decision. Networks keep the first units of every width and
    the first blocks of every stage.
    """

    Config: ClassVar[type[Config]] = ChannelsConfig
    presets: ClassVar[Mapping[str, Preset]] = {
        "resnet56": Preset(
            "CIFAR ResNet-56: the width inside every block, and the blocks of every stage",
            {"model": {"source": "builtin", "name": "cifar_resnet56"}, "depth": True},
        ),
        "mobilenetv2": Preset(
            "timm's MobileNetV2 with widths in multiples of 8",
            {"model": {"source": "timm", "name": "mobilenetv2_100"}, "align": 8},
        ),
        "mobilenetv3-small": Preset(
            "MobileNetV3-Small for images of 32 pixels: expansions and widths of stages, as NetAdapt narrows them",
            {
                "model": {
                    "source": "space",
                    "name": "mobilenetv3",
                    "kwargs": {"preset": "mobilenetv3-small", "options": {"strides": (2, 1, 2, 2, 1, 2)}},
                    "input_size": (3, 32, 32),
                },
                "align": 8,
                "include": ["*.expand", "*.project", "stem", "last", "head"],
            },
        ),
    }
    config: ChannelsConfig
    depth_where_possible: ClassVar[bool] = False
    """Whether `depth: true` leaves a model as deep as it is that can do without none of its blocks."""

    def __init__(self, config: ChannelsConfig) -> None:
        self.config = config
        self._bases: dict[Task, Base] = {}
        module, self.own_task = self._open(None, seed=0)
        self.default_task = self.own_task
        graph = self._graph_in_scope(module)
        self._full = graph.widths()
        blocks = graph.blocks if config.depth else ()
        shares = config.depth if isinstance(config.depth, list) else ()
        self.stages: tuple[Stage, ...] = find_stages(module, blocks, config.exclude, shares)
        rules = WidthRules(config.align, config.min_width, _LEAST)
        self.widths: tuple[Width, ...] = find_widths(graph, config.widths, rules, self.stages, config.by)
        if not self.stages and (isinstance(config.depth, list) or (config.depth and not self.depth_where_possible)):
            raise InputError(
                f"space channels: option depth: {self.what} has no residual blocks to leave out; allowed: false"
            )
        if not self.stages and not self.widths:
            raise InputError(
                f"space channels: option widths: {self.what} leaves nothing to decide with widths {config.widths}, "
                f"align {config.align} and min_width {config.min_width}"
            )
        self._bases[self.own_task] = self._based(module, graph)
        super().__init__(config)

    @property
    def what(self) -> str:
        """The model as messages name it."""
        return repr(self.config.model.name)

    def _decisions(self) -> Sequence[Decision]:
        return decisions(self.stages, self.widths)

    def widest(self) -> Architecture:
        """Return the architecture with the widest choice of every decision: the base model, where 1.0 is offered."""
        return self.check({decision.name: decision.choices[-1] for decision in self.decisions})

    def ranking(
        self, criterion: str, batches: Batches | None = None, module: nn.Module | None = None, task: Task | None = None
    ) -> Ranking:
        """Score all units by a criterion of structure pruning.

        Args:
            criterion: such as `magnitude`.
            batches: yields samples, for criteria that need data.
            module: of the base model's architecture; None: the base model with its weights.
            task: of `module`.

        Raises:
            InputError: the criterion is unknown or cannot score this model.
        """
        base = self.base(task or self.default_task)
        module = module or base.module
        data = ScoringData(base.graph, batches, next(module.parameters()).device)
        return Ranking(*score_units(module, base.graph, criterion, data))

    def plan_of(self, arch: Mapping[str, Choice], ranking: Ranking | None = None, task: Task | None = None) -> Plan:
        """Return the plan that makes `arch` of the base model: the first units stay, or the best of `ranking`."""
        arch = self.check(arch)
        base = self.base(task or self.default_task)
        graph = ranking.graph if ranking else base.graph
        with torch.device("cpu"):  # indices, also where the caller builds on the meta device
            kept = {name: torch.arange(units) for name, units in units_kept(self.widths, arch).items()}
            if ranking:
                kept = {name: strongest(ranking.scores[name], len(units)) for name, units in kept.items()}
            dropped = blocks_dropped(self.stages, arch)
            return make_plan(base.module, graph, kept, dropped=dropped, align=self.config.align)

    def base(self, task: Task) -> Base:
        """Return the base model for `task`, traced once."""
        if task not in self._bases:
            with torch.device("cpu"):  # tracing runs the model, also where the caller builds on the meta device
                module, _ = self._open(task, seed=0)
                images = sample_images(task)
                found = checked(module, build_graph(module, images), images)
                names = {group.name for group in self._bases[self.own_task].graph.groups}
                groups = tuple(group for group in found.groups if group.name in names)
                self._bases[task] = self._based(module, replace(found, groups=groups), task)
        return self._bases[task]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        return apply(self.plan_of(arch, task=task), self.initial_model(task)).train()

    def initial_model(self, task: Task) -> nn.Module:
        """Return the whole model with the weights of the config, else with new ones; not to be changed."""
        if self.config.model.has_weights:
            return self.base(task).module
        return self._open(task, seed=int(torch.randint(2**31, (), device="cpu")))[0]

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        units = {**self._full, **units_kept(self.widths, arch)}
        dropped = set(blocks_dropped(self.stages, arch))
        return [row.at(units) for row in self.base(task).rows if row.block not in dropped]

    def _supernet(self, task: Task) -> Supernet:
        return ChannelSupernet(self, task)

    def _open(self, task: Task | None, seed: int) -> tuple[nn.Module, Task]:
        """Return the whole model for `task` (None: as the model is) and what it is for."""
        own = task is None or task == self.own_task
        built = build_model(self.config.model, None if own else task, seed)
        return built.module, _of_square_images(built)

    def _graph_in_scope(self, module: nn.Module) -> Graph:
        graph = self._traced(module)
        try:
            return in_scope(graph, module, self.config.units, self.config.include, self.config.exclude)
        except InputError as error:
            renamed = (text.removeprefix("prune: ").replace("prune.", "option ") for text in error.problems)
            raise InputError(*(f"space channels: {text}" for text in renamed)) from None

    def _traced(self, module: nn.Module) -> Graph:
        images = sample_images(self.default_task)
        return checked(module, build_graph(module, images), images)

    def _based(self, module: nn.Module, graph: Graph, task: Task | None = None) -> Base:
        decided = {name for width in self.widths for name in width.groups}
        blocks = [block for stage in self.stages for block in stage.blocks]
        return Base(module, graph, make_rows(module, graph, decided, blocks, sample_images(task or self.default_task)))


def sample_images(task: Task) -> Tensor:
    """Return one image of noise of the size that networks for `task` take."""
    return torch.randn(1, *task.input_size, generator=torch.Generator().manual_seed(0))


def _of_square_images(built: BuiltModel) -> Task:
    """Return what a model is for; networks of spaces take square images and give what their task asks for."""
    task, shape = built.task, built.input_size
    if not task.num_outputs or len(shape) != 3 or shape[1] != shape[2]:
        gives = f"{task.num_outputs} {task.counted}" if task.num_outputs else f"no {task.form}"
        raise InputError(
            f"space channels: the model {built.config.name!r} takes {shown(shape)} and gives {gives}; "
            f"square images and {task.form} are needed"
        )
    return task
