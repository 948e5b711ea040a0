"""Differentiable search: strengths of candidates are trained by gradients beside the weights.

Liu et al. 2019, "DARTS: Differentiable Architecture Search"; with Gumbel noise as in Xie et al. 2019, "SNAS: Stochastic
Neural Architecture Search"; with binary gates as in Cai et al. 2019, "ProxylessNAS: Direct Neural Architecture Search
on Target Task and Hardware".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.special import entr

from compress.core.batch_norm import norm_layers, statistics_kept
from compress.core.config import Config
from compress.core.errors import InputError
from compress.training.engine import Engine
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import placed, seed_of
from evaluators.tasks import Task
from search.supernets.held_out import HeldOut
from search.supernets.look_ahead import second_order
from search.supernets.method import SupernetContext, SupernetMethod, SupernetStep, methods
from search.supernets.relaxations import Binary, Gumbel, Relaxation, Softmax
from search.supernets.skips import SkipLimit, skips
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.supernet import Supernet


class CostTerm(Config):
    """A part of the loss of strengths that grows with the MACs that they expect, above a target."""

    macs: float = Field(gt=0, description="MACs of one image up to which they cost nothing")
    weight: float = Field(0.1, gt=0, description="of the term")
    form: Literal["log", "linear"] = Field("log", description="log(macs / target), or macs / target - 1")

    def of(self, macs: Tensor) -> Tensor:
        """Return the term, a scalar."""
        ratio = macs / self.macs
        return self.weight * (ratio.log() if self.form == "log" else ratio - 1).clamp_min(0)


@methods.register("differentiable")
class Differentiable(SupernetMethod):
    """Train strengths of candidates by the held-out loss, weights by the training loss, in turns (DARTS)."""

    finds: ClassVar[bool] = True
    hangs_on_epochs: ClassVar[bool] = True

    name: Literal["differentiable"] = Field("differentiable", description="strengths of candidates, by gradients")
    relaxation: Literal["softmax", "gumbel", "binary"] = Field(
        "softmax",
        description="what is computed: all candidates in proportion (DARTS), with Gumbel noise (SNAS), or one of each, "
        "and two where strengths learn (ProxylessNAS)",
    )
    temperature: float = Field(1.0, gt=0, description="relaxation gumbel: of the first epoch")
    final_temperature: float = Field(0.33, gt=0, description="relaxation gumbel: falls linearly towards this")
    order: Literal["first", "second"] = Field(
        "first", description="second: what strengths do to the weights' next update counts (twice the time)"
    )
    xi: float | None = Field(None, ge=0, description="order second: size of that update; null is the learning rate")
    arch_lr: float = Field(3e-4, gt=0, description="learning rate of strengths, by Adam")
    arch_betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.5, 0.999], min_length=2, max_length=2, description="Adam's decay rates of mean and variance"
    )
    arch_weight_decay: float = Field(1e-3, ge=0, description="L2 penalty of strengths")
    arch_warmup_epochs: int = Field(0, ge=0, description="epochs in which only weights learn")
    cost: CostTerm | None = Field(None, description="what MACs add to the loss of strengths")
    collapse: SkipLimit | None = Field(None, description="when the training stops for too many skip connections")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.relaxation != "gumbel" and (self.temperature, self.final_temperature) != (1.0, 0.33):
            raise ValueError(f"temperatures are for relaxation gumbel; got {self.relaxation}; leave them out")
        if self.order == "second" and self.relaxation == "binary":
            raise ValueError("order second needs candidates in proportion; got relaxation binary; allowed order first")
        if self.order == "first" and self.xi is not None:
            raise ValueError("xi is for order second; got order first; leave it out")
        return self

    def make(self, space: Space, task: Task) -> Supernet:
        """Return the space's supernet; InputError for one that cannot mix choices."""
        supernet = space.supernet(task)
        supernet.mixtures()
        return supernet

    def step(self, supernet: Supernet, context: SupernetContext) -> DifferentiableStep:
        """Return the step; raises InputError for what the space, the optimiser or the precision cannot do."""
        config = context.config
        if self.order == "second" and config.optimizer != "momentum":
            what = "order second looks ahead of stochastic gradient descent"
            raise InputError(f"supernet.optimizer: {what}; got {config.optimizer!r}; allowed momentum")
        if self.order == "second" and config.precision != "32":
            what = "order second takes differences of passes that 16 bits do not resolve"
            raise InputError(f'supernet.precision: {what}; got "{config.precision}"; allowed "32"')
        if self.arch_warmup_epochs >= config.epochs > 0:
            what = f"nothing is left of {config.epochs} epochs to learn strengths in"
            raise InputError(f"supernet.method.arch_warmup_epochs: {what}; got {self.arch_warmup_epochs}")
        if self.collapse is not None:
            self.collapse.check(supernet.space)
        return DifferentiableStep(self, supernet, context)

    def relaxed(self, progress: float) -> Relaxation:
        """Return the relaxation after a share of the epochs."""
        if self.relaxation == "gumbel":
            return Gumbel(self.final_temperature + (1 - progress) * (self.temperature - self.final_temperature))
        return Softmax() if self.relaxation == "softmax" else Binary()


class DifferentiableStep(SupernetStep):
    """Strengths learn from a held-out batch, then weights from the training batch."""

    present: Tensor
    still: Tensor
    stopped: Tensor

    def __init__(self, method: Differentiable, supernet: Supernet, context: SupernetContext) -> None:
        """Draw the first strengths, 1e-3 · N(0, 1), from PyTorch's generator."""
        super().__init__(context)
        assert context.data.train is not None
        self.method, self.seed, self.epochs = method, context.seed, context.config.epochs
        self.batches = len(context.data.train)
        self.held_out = HeldOut(context.data)
        self.candidates = supernet.mixtures()
        self._decode, self._expected_macs = supernet.decode, supernet.expected_macs
        self._to_code = supernet.space.to_code
        self.sizes = [len(choices) for choices in self.candidates.values()]
        present = torch.arange(max(self.sizes)) < torch.tensor(self.sizes).unsqueeze(1)
        self.register_buffer("present", present, persistent=False)
        self.strengths = nn.Parameter(torch.where(present, 1e-3 * torch.randn(present.shape), 0.0))
        self.register_buffer("still", self.strengths.detach().clone())  # of the last epoch without a collapse
        self.register_buffer("stopped", torch.tensor(False))
        self.adam = torch.optim.Adam(
            [self.strengths],
            method.arch_lr,
            betas=(method.arch_betas[0], method.arch_betas[1]),
            weight_decay=method.arch_weight_decay,
        )
        if method.cost is not None:
            self._expected_macs(self.probabilities())  # InputError for a space that cannot tell

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Let held-out batches be made where they are needed."""
        super().prepare(model, engine)
        self.held_out.loader = placed(self.held_out.loader, engine.device)
        self._norms = norm_layers(model)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return Adam for the strengths."""
        return {"strengths": self.adam}

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Let the strengths make their step, and return the loss of the weights at the new strengths."""
        relaxation = self.method.relaxed(update // self.batches / max(1, self.epochs))
        batch = self.task.mixed(batch)
        if update >= self.method.arch_warmup_epochs * self.batches:
            self._search(model, batch, update, relaxation)
        with torch.no_grad():
            weights = relaxation.training(self._masked(), self._generator(update, 0))
        self._mix(model, weights)
        return self.loss_of(model, batch)

    def _search(self, model: nn.Module, batch: Batch, update: int, relaxation: Relaxation) -> None:
        """Make one step of the strengths; weights, their gradients and the running statistics stay as they are."""
        before = self._masked().detach()
        held_out = self.engine.moved(self.held_out.batch(update))
        self.adam.zero_grad()
        with statistics_kept(self._norms):
            if self.method.order == "first":
                loss = self._searched(model, held_out, update, relaxation)
                self.engine.backward(loss, inputs=[self.strengths])
            else:
                second_order(
                    self.strengths,
                    [weight for weight in model.parameters() if weight.requires_grad],
                    partial(self._searched, model, held_out, update, relaxation),
                    partial(self._trained, model, batch, update, relaxation),
                    self.optimizer,
                    self.engine,
                    self.method.xi,
                )
        self.engine.apply(self.adam)
        with torch.no_grad():
            weights = relaxation.searching(before, self._generator(update, 1))
            settled = relaxation.settled(before, self._masked(), weights)
            self.strengths.copy_(settled.masked_fill(~self.present, 0.0))

    def _searched(self, model: nn.Module, batch: Batch, update: int, relaxation: Relaxation) -> Tensor:
        """Return the loss of the strengths on a held-out batch."""
        strengths = self._masked()
        weights = relaxation.searching(strengths, self._generator(update, 1))
        self._mix(model, weights)
        loss = self.loss_of(model, batch)
        if self.method.cost is not None:
            likely = torch.where(weights != 0, strengths, strengths.detach()).softmax(1)
            loss = loss + self.method.cost.of(self._expected_macs(self.named(likely)))
        return loss

    def _trained(self, model: nn.Module, batch: Batch, update: int, relaxation: Relaxation) -> Tensor:
        """Return the training loss as the strengths see it."""
        self._mix(model, relaxation.searching(self._masked(), self._generator(update, 1)))
        return self.loss_of(model, batch.mapped(Tensor.clone))

    def _mix(self, model: nn.Module, weights: Tensor) -> None:
        model.mix(self.named(weights))  # type: ignore[operator]

    def _generator(self, update: int, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, update, purpose))

    def _masked(self, strengths: Tensor | None = None) -> Tensor:
        """Return strengths with -inf where a mixture has fewer candidates than others."""
        return (self.strengths if strengths is None else strengths).masked_fill(~self.present, -torch.inf)

    @torch.no_grad()
    def probabilities(self, final: bool = False) -> dict[str, Tensor]:
        """Return how likely the candidates of each mixture are; `final` passes over an epoch of collapse."""
        strengths = self.still if final and self.stopped else self.strengths
        return self.named(self._masked(strengths).softmax(1))

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """Return rows of (mixtures, most candidates) under the names of the mixtures, (candidates,) each."""
        rows: Sequence[Tensor] = weights.unbind()
        return {name: row[:size] for name, row, size in zip(self.candidates, rows, self.sizes, strict=True)}

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """See whether skip connections have taken over; if not, these are the strengths that count."""
        limit = self.method.collapse
        learnt = epoch - self.method.arch_warmup_epochs
        if limit is not None and learnt >= 0 and limit.exceeded_by(self._decode(self.probabilities()), learnt):
            self.stopped.fill_(True)
        else:
            self.still.copy_(self.strengths.detach())

    def finished(self) -> bool:
        """Return whether skip connections have taken over."""
        return bool(self.stopped)

    def found(self, supernet: Supernet) -> Architecture:
        """Return the architecture that the strengths stand for; after a collapse, those of the epoch before it."""
        return supernet.decode(self.probabilities(final=True))

    def figures(self) -> dict[str, float]:
        """Return the skip connections of what would be found, how open the choice is (1 is fully), and its MACs."""
        likely = self.probabilities()
        openness = [entr(each).sum().item() / math.log(len(each)) for each in likely.values() if len(each) > 1]
        told = {
            "skips": float(skips(self._decode(likely))),
            "openness": round(sum(openness) / max(1, len(openness)), 4),
        }
        if self.method.cost is not None:
            told["expected_macs"] = self._expected_macs(likely).item()
        return told

    def details(self) -> dict[str, Any]:
        """Return the skip connections of what is found, whether too many stopped the training, and probabilities."""
        likely = self.probabilities(final=True)
        return {
            "skips": skips(self._decode(likely)),
            "collapsed": bool(self.stopped),
            "probabilities": {
                name: dict(zip(map(str, choices), [round(each, 5) for each in likely[name].tolist()], strict=True))
                for name, choices in self.candidates.items()
            },
        }

    def notes(self) -> list[str]:
        """Return what was found, how many skip connections it has, and whether the next epoch had too many."""
        found = self._decode(self.probabilities(final=True))
        ended = "; training stopped, since the next epoch had too many" if self.stopped else ""
        return [f"found {self._to_code(found)} with {skips(found)} skip connections{ended}"]
