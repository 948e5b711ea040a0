"""Block-wise training without labels: BossNAS (Li et al. 2021, "BossNAS: Exploring Hybrid CNN-transformers ...").

Each block of the supernet is trained by itself, on what the blocks before it, fixed on their best paths, hand on. Of
every image two views are compared: each path's prediction of one view with what several paths of a slowly following
target network make of the other. Then all paths of the block are rated, the best one is fixed, and the next block's
turn comes. Whole networks are rated by the sum over blocks.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.atomic import write_json
from compress.core.batch_norm import enough_values
from compress.core.errors import InputError
from compress.core.progress import say
from compress.training.engine import Engine
from compress.training.replicas import replicas, shared_training
from compress.training.step import Teacher
from compress.training.trainer import Trainer
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import placed, seed_of
from evaluators.datasets.views import How, Views, views_of
from evaluators.tasks import TaskConfig
from search.supernets.block_paths import BlockPathsSection, DistinctPaths, DrawPaths, Path
from search.supernets.block_ratings import METRIC, BlockRater
from search.supernets.bootstrap import (
    Branch,
    Projector,
    bootstrap_loss,
    ensemble,
    follow,
    perceptron,
    target_momentum,
)
from search.supernets.method import (
    SupernetConfig,
    SupernetContext,
    SupernetMethod,
    SupernetStep,
    Training,
    methods,
    seeded,
)
from search.supernets.population import Side, population_losses, settle
from search.supernets.rating import Rater
from spaces.supernet import Supernet, SupernetBlock

if TYPE_CHECKING:
    from search.supernets.trained import TrainedSupernet


class BootstrapStep(SupernetStep):
    """The loss of some paths of one block, each against the centre of what the target network makes of all of them.

    Its state are projector, predictor, and the target's block and projector.
    """

    def __init__(
        self,
        method: Blockwise,
        context: SupernetContext,
        block: SupernetBlock,
        draw: DrawPaths,
        before: tuple[nn.Module, nn.Module],
        number: int,
    ) -> None:
        """`before` are the earlier blocks of the online and of the target network, `number` says which block it is."""
        super().__init__(context)
        self.projector = Projector(block.outputs, method.hidden, method.projection)
        self.predictor = perceptron(method.projection, method.hidden, method.projection)
        self.target = Branch(copy.deepcopy(block), copy.deepcopy(self.projector)).requires_grad_(False)
        self.before, self.target_before = (Teacher(each) for each in before)
        self.draw, self.seed, self.number = draw, context.seed, number
        self.pair_per_path = method.views == "pair_per_path"
        self.pairs = len(draw(random.Random(0))) if self.pair_per_path else 1
        assert context.data.train is not None
        self.updates = context.config.epochs * len(context.data.train)

    def prepare(self, model: nn.Module, engine: Engine) -> None:
        """Move the earlier blocks to where this one trains, too."""
        super().prepare(model, engine)
        self.before.prepare(engine)
        self.target_before.prepare(engine)

    def loss(self, model: nn.Module, batch: Batch, update: int) -> Tensor:
        """Return the sum of the losses of all paths, each the mean over the images of a batch of `Views`."""
        paths = self.draw(random.Random(seed_of(self.seed, self.number, update)))
        views = views_of(batch)
        features = [self.before(view) for view in views]
        with enough_values():
            centres = self._centres(paths, [self.target_before(view) for view in views])
            total = torch.zeros((), device=self.engine.device)
            for path, place in zip(paths, self._places(len(paths)), strict=True):
                model.activate(path)  # type: ignore[operator]
                loss = self._predicted(model, features[place], centres[1])
                loss = loss + self._predicted(model, features[place + 1], centres[0])
                self.engine.backward(loss)
                total += loss.detach()
        return total

    @torch.no_grad()
    def _centres(self, paths: list[Path], features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the target (N, projection) of predictions of the second views, and of the first."""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        with self.engine.autocast():
            for path, place in zip(paths, self._places(len(paths)), strict=True):
                self.target.activate(path)
                for side in (0, 1):
                    found[side].append(self.target(features[place + side]).float())
        return ensemble(found[0]), ensemble(found[1])

    def _predicted(self, model: nn.Module, features: Tensor, centre: Tensor) -> Tensor:
        mapped = model(features)
        with self.engine.autocast():
            predicted = self.predictor(self.projector(mapped))
        return bootstrap_loss(predicted.float(), centre)

    def _places(self, paths: int) -> list[int]:
        """Return where each path's pair of views begins."""
        return [2 * path if self.pair_per_path else 0 for path in range(paths)]

    def after_update(self, model: nn.Module, update: int) -> None:
        """Let the target follow."""
        momentum = target_momentum(update, self.updates)
        follow(self.target, Branch(cast(SupernetBlock, model), self.projector), momentum)


@methods.register("blockwise")
class Blockwise(SupernetMethod):
    """Train block after block without labels, and rate all paths of each (BossNAS).

    `epochs` and `minutes` of the section are for each block, whose optimiser and schedule start anew.
    """

    finds: ClassVar[bool] = True
    hangs_on_epochs: ClassVar[bool] = True  # how slowly the target follows does
    name: Literal["blockwise"] = Field(
        "blockwise", description="block after block without labels; epochs and minutes of the section are per block"
    )
    paths: BlockPathsSection = Field(DistinctPaths(), description="which paths of the block an update trains")
    views: Literal["one_pair", "pair_per_path"] = Field(
        "one_pair", description="two views of every image for all paths of an update, or two for each path"
    )
    augment: How = Field("data", description="views as the section data augments, or by BYOL's stronger transforms")
    hidden: int = Field(4096, ge=1, description="width of the hidden layer of projector and predictor")
    projection: int = Field(256, ge=1, description="width of the projections that are compared")
    recalibrate: int = Field(1, ge=1, description="training batches that estimate a path's batch norms for its rating")

    def step(self, supernet: Supernet, context: SupernetContext) -> SupernetStep:
        """Return the step of the first block."""
        block = supernet.blocks()[0]
        nothing = nn.Sequential(), nn.Sequential()
        return self._step(block, {}, nothing, 0, context)

    def train(self, supernet: Supernet, context: SupernetContext) -> Training:
        """Train and rate each block; a block that is done is neither trained nor rated again.

        Raises InputError where the supernet has no blocks, or the data no views.
        """
        blocks = supernet.blocks()
        _check(context.config)
        rounds = context.directory / "blocks"
        if not context.resume:
            shutil.rmtree(rounds, ignore_errors=True)
        before: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        taken: Path = {}
        ratings: list[dict[str, float]] = []
        told: list[dict[str, Any]] = []
        with shared_training():
            for number, block in enumerate(blocks):
                label = f"block {number + 1} of {len(blocks)}"
                earlier = nn.Sequential(*before[0]), nn.Sequential(*before[1])
                with seeded(seed_of(context.seed, number)):
                    step = self._step(block, taken, earlier, number, context)
                directory = rounds / str(number + 1)
                seconds = self._train_block(block, step, label, directory, context)
                losses, taken = self._rate(block, step, taken, earlier, directory / "ratings.json", context)
                code = block.code(taken)
                say(f"supernet: {label}: the best of {len(losses)} paths is {code}, at {losses[code]:.4f}")
                ratings.append(losses)
                told.append(
                    {
                        "paths": len(losses),
                        "chosen": code,
                        "lowest": min(losses.values()),
                        "highest": max(losses.values()),
                        "seconds_training": seconds,
                    }
                )
                before[0].append(block)
                before[1].append(step.target.block)
        supernet.to("cpu").eval()
        total = round(sum(each["seconds_training"] for each in told), 3)
        details = {"epochs_run": context.config.epochs, "seconds_training": total, "blocks": told}
        return Training(supernet.space.check(taken), {"blocks": ratings}, details)

    def metrics_for(self, task: TaskConfig) -> Collection[str]:
        """Return the sum of the blocks' losses, params, macs."""
        return (METRIC, "params", "macs")

    def rater(self, trained: TrainedSupernet, supernet: Supernet, device: str, recalibrate: int) -> Rater:
        """Return what adds up the ratings of an architecture's blocks."""
        return BlockRater(supernet.blocks(), (trained.ratings or {}).get("blocks", []))

    def _step(
        self,
        block: SupernetBlock,
        before: Path,
        earlier: tuple[nn.Module, nn.Module],
        number: int,
        context: SupernetContext,
    ) -> BootstrapStep:
        draw = self.paths.drawer(block.paths(before), before)
        return BootstrapStep(self, context, block, draw, earlier, number)

    def _train_block(
        self, block: SupernetBlock, step: BootstrapStep, label: str, directory: File, context: SupernetContext
    ) -> float:
        """Train one block to the end, and return how many seconds that took over all resumes."""
        log = context.log
        trainer = Trainer(
            block,
            step,
            replace(context.data, test=None, train=self._views(step, context)),
            context.config,
            device=context.device,
            seed=context.seed,
            checkpoint_dir=directory,
            log=None if log is None else lambda event: log({**event, "block": label}),
            label=f"supernet ({self.name}), {label}",
        )
        return round(trainer.run(context.resume).seconds, 3)

    def _views(self, step: BootstrapStep, context: SupernetContext) -> Views:
        assert context.data.train is not None
        data = replace(context.data, train=placed(context.data.train, context.device))
        return Views(data, 2 * step.pairs, self.augment)

    def _rate(
        self,
        block: SupernetBlock,
        step: BootstrapStep,
        before: Path,
        earlier: tuple[nn.Module, nn.Module],
        file: File,
        context: SupernetContext,
    ) -> tuple[dict[str, float], Path]:
        """Return the loss of each path by its code, and the best path, on which the block is fixed."""
        device = context.device
        online = Side(earlier[0].to(device), Branch(block, step.projector, step.predictor).to(device))
        target = Side(earlier[1].to(device), step.target.to(device))
        views = Views(context.data, 2, self.augment)
        calibration = list(islice(views.epoch(context.config.epochs), self.recalibrate))
        paths = {block.code(path): path for path in block.paths(before)}
        losses: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if set(losses) != set(paths):
            held_out = Views(context.data, 2, self.augment, held_out=True)
            found = population_losses(
                list(paths.values()), online, target, calibration, held_out.batches(), len(held_out), device
            )
            losses = dict(zip(paths, found, strict=True))
            write_json(file, losses)
        best = replicas().led(lambda: paths[min(losses, key=losses.__getitem__)])
        for side in (online, target):
            settle(side, best, calibration, device)
        return losses, best


def _check(config: SupernetConfig) -> None:
    """Refuse settings of the section that mean nothing without labels, or take the place of what the method does."""
    wrong = [name for name in ("label_smoothing", "mixup", "cutmix") if getattr(config, name)]
    if wrong:
        raise InputError(f"supernet.{wrong[0]}: is about labels, and method blockwise learns without; leave it out")
    if config.ema is not None:
        raise InputError("supernet.ema: method blockwise has an average of its own, the target; leave it out")
