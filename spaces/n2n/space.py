"""The space of N2N: shortened and shrunk versions of a given model.

Ashok et al., "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning" (ICLR 2018),
sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from compress.graph.apply import apply
from compress.graph.graph import Graph, evaluate, inside
from compress.graph.plan import Plan, make_plan
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision
from spaces.channels.choices import Width, units_kept
from spaces.channels.costs import Row, make_rows
from spaces.channels.space import ChannelsConfig, ChannelSpace, sample_images
from spaces.layers import Layer
from spaces.listed import ListedSpace
from spaces.n2n.chain import Link, make_chain
from spaces.n2n.removal import Removals, find_removals
from spaces.registry import spaces
from spaces.zoo import ModelConfig, build_model

PUBLISHED_FACTORS = [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
"""The table of the published code: what is drawn evenly from it is 0.5 five times as often."""

_FEWEST, _MOST = 10, 50_000  # inputs of a linear layer


class N2NConfig(Config):
    """Options of the space of N2N."""

    model: ModelConfig = Field(
        default_factory=lambda: ModelConfig(source="builtin", name="cifar_resnet20"),
        description="the teacher: the model whose layers are removed and shrunk",
    )
    factors: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        PUBLISHED_FACTORS,
        min_length=1,
        description="what widths are multiplied by; a factor may be there several times",
    )
    align: int = Field(1, ge=1, description="widths are multiples of this, and the full width")
    min_width: int = Field(10, ge=1, description="filters that every layer keeps at least")
    include: list[str] = Field([], description="globs over layers; if given, only their widths are decided")
    exclude: list[str] = Field([], description="globs over layers and blocks whose widths stay as they are")


@dataclass(frozen=True)
class Step:
    """A layer of the teacher's chain with its decisions.

    `keep` is whether it is left out, None where it always stays; `widths` are decided here for it and those tied to it.
    """

    link: Link
    keep: str | None
    widths: tuple[str, ...]


@spaces.register("n2n")
class N2NSpace(ListedSpace):
    """Every layer of a residual or sequential network may be left out, every width shrunk by a factor.

    A layer that can be left out is a convolution, with its batch norm, whose map has the same shape before and after;
    the first layer, strided ones, pools and linear layers stay. A residual block whose layers all go, goes with them;
    one that has layers which change the number of channels (a bottleneck) can be left out whole. Widths that a sum ties
    are one decision, and a layer that is left out makes the widths before and after it one: no combination is invalid.

    Students begin with new weights, as published. Unlike the published code, norms and activations are not removed
    apart from their convolution, and kernels, strides and paddings stay: the code itself changes nothing else than
    filters inside residual blocks.
    """

    Config: ClassVar[type[Config]] = N2NConfig
    config: N2NConfig

    def __init__(self, config: N2NConfig) -> None:
        self.config = config
        options = config.model_dump(exclude={"factors", "model"})
        try:
            self.given = ChannelSpace(ChannelsConfig(model=config.model, widths=config.factors, **options))
        except InputError as error:
            raise InputError(*(text.replace("space channels", "space n2n") for text in error.problems)) from None
        self.default_task = self.given.default_task
        base = self.given.base(self.default_task)
        self.widths: tuple[Width, ...] = self.given.widths
        chain = make_chain(base.module, sample_images(self.default_task), base.graph.blocks)
        self.removals: Removals = find_removals(base.module, base.graph, chain, self.widths, base.graph.blocks)
        self._full = base.graph.widths()
        self._rows: dict[Task, tuple[Row, ...]] = {}
        super().__init__(config)
        self._linear = [
            f"{name}.weight"
            for name, part in base.module.named_modules()
            if isinstance(part, nn.Linear) and f"{name}.weight" in base.graph.tensors
        ]
        self.steps: tuple[Step, ...] = self._steps(chain, base.graph)

    def _decisions(self) -> Sequence[Decision]:
        graph = self.given.base(self.default_task).graph
        waiting = {each.decision_name: self.removals.decision(each) for each in self.removals.all}
        result: list[Decision] = []

        def enter(name: str) -> None:
            decision = waiting.pop(name, None)
            if decision is not None:
                for other in decision.when.reads if decision.when else ():
                    enter(other)
                result.append(decision)

        for width in self.widths:
            when = self.removals.condition(width, graph)
            for name in when.reads if when else ():
                enter(name)
            result.append(Decision(width.name, tuple(width.units), when))
        for name in list(waiting):
            enter(name)
        return result

    def _steps(self, chain: Sequence[Link], graph: Graph) -> tuple[Step, ...]:
        """Return the chain with the decisions that belong to each layer: a width belongs to the first that has it."""
        keeps = {each.at: each.decision_name for each in self.removals.all}
        places = {link.name: place for place, link in enumerate(chain)}
        widths: dict[str, list[str]] = {}
        for width in self.widths:
            layers = [layer for name in width.groups for layer in graph.group(name).layers if layer in places]
            at = min(layers, key=lambda layer: places[layer], default=chain[0].name)
            widths.setdefault(at, []).append(width.name)
        return tuple(Step(link, keeps.get(link.name), tuple(widths.get(link.name, ()))) for link in chain)

    def shrunk(self, width: str, factor: float) -> Choice:
        """Return the choice of a width that a factor stands for: the nearest, in doubt the wider one."""
        choices = [int(choice) for choice in self._named[width].choices]
        return min(reversed(choices), key=lambda choice: abs(choice - factor * self._full_width(width)))

    def _full_width(self, width: str) -> int:
        """Return how wide the model is there, in the decision's own units."""
        found = next(each for each in self.widths if each.name == width)
        choice, units = next(iter(found.units.items()))
        return int(choice) // units[0] * self._full[found.groups[0]]

    def widest(self) -> Architecture:
        """Return the architecture with every layer and the widest choice of every width."""
        return self.complete({}, lambda decision: decision.choices[-1])

    def has_sound_inputs(self, arch: Architecture) -> bool:
        """Return whether every linear layer has 10 to 50,000 inputs, or as many as in the model, as published."""
        units, dropped = self.units(arch), self.removals.dropped(arch)
        graph, full = self.given.base(self.default_task).graph, self._full
        for name in self._linear:
            if not inside(name, dropped):
                inputs, whole = (evaluate(graph.tensors[name][1], widths) for widths in (units, full))
                if inputs != whole and not _FEWEST <= inputs <= _MOST:
                    return False
        return True

    def units(self, arch: Architecture) -> dict[str, int]:
        """Return the units that every group of the model keeps in the network of `arch`."""
        return self.removals.tied(units_kept(self.widths, arch), arch, self._full)

    def plan_of(self, arch: Mapping[str, Choice], task: Task | None = None) -> Plan:
        """Return the plan that makes the network of `arch` of the given model; the first units stay."""
        arch = self.check(arch)
        base, units = self.given.base(task or self.default_task), self.units(arch)
        with torch.device("cpu"):  # indices, also where the caller builds on the meta device
            kept = {group.name: torch.arange(units[group.name]) for group in base.graph.groups}
            return make_plan(
                base.module, base.graph, kept, dropped=self.removals.dropped(arch), align=self.config.align
            )

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        student = apply(self.plan_of(arch, task), self._untrained(task)).train()
        dropped = self.removals.dropped(arch)
        for layer in self.removals.layers:
            if layer.name in dropped:
                student.set_submodule(layer.name, Copy())
        return student

    def _untrained(self, task: Task) -> nn.Module:
        """Return the whole model for `task` with new weights, from torch's global generator."""
        model = self.config.model.model_copy(update={"pretrained": False, "checkpoint": None})
        seed = int(torch.randint(2**31, (), device="cpu"))
        own = task == self.given.own_task
        module = build_model(model, None if own else task, seed).module
        if model.has_weights:
            _renew(module, model.name, seed)
        return module

    def _layers(self, arch: Architecture, task: Task) -> list[Layer]:
        units, dropped = self.units(arch), set(self.removals.dropped(arch))
        return [row.at(units) for row in self._all_rows(task) if not {row.layer, row.block} & dropped]

    def _all_rows(self, task: Task) -> tuple[Row, ...]:
        if task not in self._rows:
            with torch.device("cpu"):
                base = self.given.base(task)
                decided = {name for width in self.widths for name in width.groups}
                norms = {norm: layer.name for layer in self.removals.layers for norm in layer.parts[1:]}
                blocks = [*(each.name for each in self.removals.blocks), *self.removals.hollow]
                self._rows[task] = make_rows(base.module, base.graph, decided, blocks, sample_images(task), norms)
        return self._rows[task]


class Copy(nn.Module):
    """Stands where a convolution was: what changes its outputs in place must not change its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of `x`."""
        return x.clone()


def _renew(module: nn.Module, name: str, seed: int) -> None:
    """Give a model whose source has it with weights new ones; InputError for parts that cannot be begun anew."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for path, part in module.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(part.parameters(recurse=False), None) is not None:
                raise InputError(
                    f"space n2n: {path or type(part).__name__} of {name!r} cannot be given new weights; name the "
                    "network in another source (timm, torchvision, builtin), with its weights as checkpoint"
                )
