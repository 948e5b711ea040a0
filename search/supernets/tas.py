"""TAS: how wide and how deep a residual network should be, by gradients, within a band of cost.

Dong and Yang, "Network Pruning via Transformable Architecture Search" (NeurIPS 2019), section 3; schedules and
constants of the published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from compress.core.errors import InputError
from compress.training.engine import Engine
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import placed, seed_of
from evaluators.tasks import Task
from search.supernets.held_out import HeldOut
from search.supernets.method import SupernetContext, SupernetMethod, SupernetStep, methods
from search.supernets.relaxations import gumbel
from spaces.architecture import Architecture
from spaces.resnet_shapes.supernet import ResNetShapesSupernet
from spaces.space import Space
from spaces.supernet import Supernet

LOWEST = 0.1
"""Where both schedules of the temperature end."""


@methods.register("tas")
class TAS(SupernetMethod):
    """Learn the width of each convolution and the depth of each stage within a band of MACs (TAS).

    What it finds is to be trained from scratch, at best with the whole network as teacher: its weights are not worth
    inheriting, since no pass ever computes one architecture alone.
    """

    finds: ClassVar[bool] = True
    hangs_on_epochs: ClassVar[bool] = True

    name: Literal["tas"] = Field("tas", description="widths and depths of a residual network, by gradients")
    macs: float = Field(0.5, gt=0, le=1, description="most MACs that are wanted, as a share of the whole network's")
    tolerance: float = Field(
        0.05, gt=0, lt=1, description="how far below them the MACs may be, as a share of the whole network's"
    )
    cost_weight: float = Field(2.0, ge=0, description="of the cost in the loss of the architecture")
    temperature: Literal["cosine", "linear"] = Field(
        "cosine", description="how the Gumbel temperature falls to 0.1: from 5 (published code), or from 10 (paper)"
    )
    arch_lr: float = Field(1e-3, gt=0, description="learning rate of the architecture, by Adam")
    arch_weight_decay: float = Field(1e-3, ge=0, description="L2 penalty of the architecture's strengths")

    def make(self, space: Space, task: Task) -> Supernet:
        """Return the supernet; InputError for a space of something else than widths and depths."""
        supernet = space.supernet(task)
        if not isinstance(supernet, ResNetShapesSupernet):
            raise InputError(f"tas searches widths and depths; got the space {space.name}; allowed resnet_shapes")
        return supernet

    def step(self, supernet: Supernet, context: SupernetContext) -> TASStep:
        """Return the step; InputError where no architecture is as small as asked for."""
        assert isinstance(supernet, ResNetShapesSupernet)
        return TASStep(self, supernet, context)

    def temperature_at(self, progress: float) -> float:
        """Return the temperature after a share of the epochs."""
        if self.temperature == "linear":
            return 10 + (LOWEST - 10) * progress
        return LOWEST + (5 - LOWEST) * (1 + math.cos(math.pi * progress)) / 2


class TASStep(SupernetStep):
    """The architecture learns from a held-out batch, then the weights from the training batch."""

    kept: Tensor

    def __init__(self, method: TAS, supernet: ResNetShapesSupernet, context: SupernetContext) -> None:
        """Draw the first strengths, 0.01 · N(0, 1), from PyTorch's generator."""
        super().__init__(context)
        assert context.data.train is not None
        self.method, self.seed, self.epochs = method, context.seed, context.config.epochs
        self.batches = len(context.data.train)
        self.held_out = HeldOut(context.data)
        self._expected_macs = supernet.expected_macs
        self._space, self._task = supernet.space, supernet.task
        choices = supernet.mixtures()
        self.depth_names = [name for name in choices if name.endswith("depth")]
        self.width_names = [name for name in choices if name not in self.depth_names]
        self.widths, self.depths = (
            nn.Parameter(0.01 * torch.randn(len(names), len(choices[names[0]])))
            for names in (self.width_names, self.depth_names)
        )
        # The latest choices within the band, first of the widths, then of the depths; -1 before there were any.
        self.register_buffer("kept", torch.full((len(choices),), -1))
        self.adam = torch.optim.Adam(
            [self.widths, self.depths], method.arch_lr, betas=(0.5, 0.999), weight_decay=method.arch_weight_decay
        )
        self.whole_macs = self._macs_of(self._space.largest())
        self.most = method.macs * self.whole_macs
        self.least = self.most - method.tolerance * self.whole_macs
        smallest = self._macs_of(self._space.complete({}, lambda decision: decision.choices[0]))
        if self.most < smallest:
            share = math.ceil(1000 * smallest / self.whole_macs) / 1000
            raise InputError(f"supernet.method.macs: no network has so few; got {method.macs}; allowed {share} to 1")
        self._known: tuple[list[int], Architecture, int] | None = None

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Let held-out batches be made where they are needed."""
        super().prepare(model, engine)
        self.held_out.loader = placed(self.held_out.loader, engine.device)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return Adam for the strengths."""
        return {"architecture": self.adam}

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Let the architecture make its step, and return the loss of the weights."""
        temperature = self.method.temperature_at(update // self.batches / max(1, self.epochs))
        self.adam.zero_grad()
        held_out = self.engine.moved(self.held_out.batch(update))
        model.mix(self.sampled(temperature, update, 0))  # type: ignore[operator]
        loss = self.loss_of(model, held_out) + self.method.cost_weight * self.cost()
        self.engine.backward(loss, inputs=[self.widths, self.depths])  # none reach the weights
        self.engine.apply(self.adam)
        self._keep()
        with torch.no_grad():
            weights = self.sampled(temperature, update, 1)
        model.mix(weights)  # type: ignore[operator]
        return self.loss_of(model, self.task.mixed(batch))

    def sampled(self, temperature: float, update: int, purpose: int) -> dict[str, Tensor]:
        """Return weights of a mixture: of each convolution two widths, of each stage all depths."""
        generator = Generator().manual_seed(seed_of(self.seed, update, purpose))
        widths = two_of(relaxed(self.widths, temperature, generator), generator)
        depths = relaxed(self.depths, temperature, generator).softmax(1)
        return self._named(widths, depths)

    def cost(self) -> Tensor:
        """Return the cost term: the logarithm of the expected MACs (in millions), with a sign, 0 within the band.

        The sign is by the MACs of the network that would be found, with the shortcuts that only that has.
        """
        _, macs = self.current()
        if self.least <= macs <= self.most:
            return self.widths.new_zeros(())
        expected = self._expected_macs(self._named(self.widths.softmax(1), self.depths.softmax(1)))
        return torch.log(expected / 1e6) * (1 if macs > self.most else -1)

    def current(self) -> tuple[Architecture, int]:
        """Return the architecture of the strongest choices, and its MACs."""
        strongest = self._strongest().tolist()
        if self._known is None or self._known[0] != strongest:
            self._known = (strongest, *self._read(strongest))
        return self._known[1:]

    def _keep(self) -> None:
        if self.least <= self.current()[1] <= self.most:
            self.kept.copy_(self._strongest())

    def _strongest(self) -> Tensor:
        return torch.cat([self.widths.detach().argmax(1), self.depths.detach().argmax(1)])

    def _read(self, places: list[int]) -> tuple[Architecture, int]:
        choices = {decision.name: decision.choices for decision in self._space.decisions}
        names = [*self.width_names, *self.depth_names]
        strongest = {name: choices[name][place] for name, place in zip(names, places, strict=True)}
        arch = self._space.complete(strongest, lambda decision: decision.choices[0])
        return arch, self._macs_of(arch)

    def _macs_of(self, arch: Architecture) -> int:
        return self._space.cost(arch, self._task)["macs"]

    def _named(self, widths: Tensor, depths: Tensor) -> dict[str, Tensor]:
        names = [*self.width_names, *self.depth_names]
        return dict(zip(names, [*widths.unbind(), *depths.unbind()], strict=True))

    def best(self) -> tuple[Architecture, int]:
        """Return the latest architecture within the band, or the current one where none ever was, and its MACs."""
        kept: list[int] = self.kept.tolist()
        return self.current() if min(kept) < 0 else self._read(kept)

    def found(self, supernet: Supernet) -> Architecture:
        """Return `best`."""
        return self.best()[0]

    def figures(self) -> dict[str, float]:
        """Return the MACs of the strongest choices and those that are expected, as shares of the whole network's."""
        with torch.no_grad():
            expected = self._expected_macs(self._named(self.widths.softmax(1), self.depths.softmax(1)))
        return {
            "macs": round(self.current()[1] / self.whole_macs, 4),
            "expected_macs": round(expected.item() / self.whole_macs, 4),
        }

    def details(self) -> dict[str, Any]:
        """Return what was found, its MACs, the band, and whether they are within."""
        arch, macs = self.best()
        band = [round(self.least), math.floor(self.most)]
        within = self.least <= macs <= self.most
        return {"code": self._space.to_code(arch), "macs": macs, "band": band, "within_band": within}

    def notes(self) -> list[str]:
        """Return what was found, and whether it costs what was asked for."""
        arch, macs = self.best()
        within = "within" if self.least <= macs <= self.most else "outside"
        share, low, high = (each / self.whole_macs for each in (macs, self.least, self.most))
        told = f"{share:.3f} of the MACs, {within} the band of {low:.3f} to {high:.3f}"
        return [f"found {self._space.to_code(arch)} with {told}"]


def relaxed(strengths: Tensor, temperature: float, generator: Generator) -> Tensor:
    """Return z = (strengths + Gumbel noise) / temperature, (rows, choices).

    The published z takes the logarithm of the softmax of the strengths: another number for each row, which no softmax
    of z sees. Without it, no gradient reaches the strengths of what is not sampled, not even one of rounding.
    """
    while True:
        noise = gumbel(strengths, generator)
        if torch.isfinite(noise).all():
            return (strengths + noise) / temperature


def two_of(z: Tensor, generator: Generator) -> Tensor:
    """Return weights (rows, choices) of two choices of each row, drawn by softmax(z) without replacement; others 0.

    They are the softmax of both, through which gradients flow.
    """
    probabilities = z.detach().softmax(1).cpu() + 1e-7
    drawn = torch.multinomial(probabilities, 2, generator=generator).to(z.device)
    return torch.zeros_like(z).scatter(1, drawn, z.gather(1, drawn).softmax(1))
