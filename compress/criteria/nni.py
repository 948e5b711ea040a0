"""NNI 3's mask pruners as criteria (extra `nni`): what each would mask last is worth most.

A pruner of NNI's masks rows of layers; here it only measures, on a copy of the model, and the metrics of all rows of a
unit, in every layer that its group narrows, are added up, as NNI does within a dependency group. Pruners that need
training make `steps` updates (plain SGD) on the recipe's training batches, a few samples each.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.copies import copied
from compress.core.errors import InputError
from compress.criteria import unit_criteria
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, mean_normalised
from compress.graph.graph import Group, Slice
from evaluators.datasets.batch import Batch


class NniUnits(UnitCriterion):
    """What a pruner of NNI's measures for each row of a layer, summed over a unit, over the mean of the group."""

    pruner: ClassVar[str]

    def check(self) -> None:
        """Raise InputError where NNI is not installed."""
        if importlib.util.find_spec("nni") is None:
            raise InputError(f"prune.criterion: 'nni:{self.pruner}' needs the extra: pip install 'compress[nni]'")

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return the sum of the metrics of a unit's rows over all layers of its group, over the group's mean.

        Raises:
            InputError: NNI is not installed, a group narrows no layer that it knows, or data are needed and missing.
        """
        self.check()
        rows = {group.name: [part for part in group.slices if _is_row(part, model)] for group in groups}
        unknown = [name for name, parts in rows.items() if not parts]
        if unknown:
            raise InputError(
                f"prune.criterion: 'nni:{self.pruner}' measures rows of convolutions and linear layers; {unknown[0]} "
                "has none; exclude it (prune.exclude) or use another criterion"
            )
        layers = list(dict.fromkeys(part.layer for parts in rows.values() for part in parts))
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(data.generator.initial_seed())
            metrics = self._metrics(copied(model), layers, data)
        sums = {name: metrics[name]["weight"].detach().double().flatten(1).sum(1).cpu() for name in layers}
        scores = {
            name: torch.stack([sums[part.layer][part.positions].sum((1, 2)) for part in parts]).sum(0)
            for name, parts in rows.items()
        }
        return self._comparable(scores, data)

    def _comparable(self, scores: dict[str, Tensor], data: ScoringData) -> dict[str, Tensor]:
        """Return the scores so that those of different groups can be compared."""
        return mean_normalised(scores, data.graph)

    def _metrics(self, model: nn.Module, layers: list[str], data: ScoringData) -> dict[str, dict[str, Tensor]]:
        """Return layer -> "weight" -> what the pruner measures; `model` may be changed."""
        made = self._pruner(model, layers)
        found: dict[str, dict[str, Tensor]] = made._calculate_metrics(made._collect_data())
        return found

    def _pruner(self, model: nn.Module, layers: list[str], **arguments: Any) -> Any:
        from nni.compression import pruning

        wanted = [{"op_names": layers, "target_names": ["weight"], "sparse_ratio": 0.5}]  # the ratio changes no metric
        return getattr(pruning, self.pruner)(model, wanted, **arguments)


class TrainedUnits(NniUnits):
    """A pruner of NNI's that measures while it trains."""

    needs_loss = True

    steps: int = Field(32, ge=1, description="training updates, on a few samples each")
    lr: float = Field(0.001, ge=0, description="learning rate of the weights in these (plain SGD)")

    def _metrics(self, model: nn.Module, layers: list[str], data: ScoringData) -> dict[str, dict[str, Tensor]]:
        import nni
        from nni.compression.utils import TorchEvaluator

        for parameter in model.parameters():
            parameter.requires_grad_(True)

        def updates(
            wrapped: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], *_: Any, **__: Any
        ) -> None:
            wrapped.eval()  # as other criteria do: batch norms go by their statistics
            epochs = chain.from_iterable(data.draws(f"nni:{self.pruner}") for _ in repeat(None))
            for batch in islice(epochs, self.steps):
                optimizer.zero_grad()
                loss(batch, wrapped).backward()
                optimizer.step()

        def loss(batch: Batch, wrapped: nn.Module) -> Tensor:
            with data.task.losing(wrapped):
                return data.task.loss(data.task.forward(wrapped, batch), batch)

        optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=self.lr)
        made = self._pruner(model, layers, evaluator=TorchEvaluator(updates, optimizer, loss), **self._duration())
        measure, metrics = made._calculate_metrics, {}

        def measured(collected: Any) -> dict[str, dict[str, Tensor]]:
            metrics.update(found := measure(collected))
            return found  # type: ignore[no-any-return]

        made._calculate_metrics = measured  # asked during the training, for masks; those of the last time count
        made.compress(*self._limits())
        return metrics

    def _duration(self) -> dict[str, int]:
        """Return how long the pruner measures, as its constructor takes it."""
        return {"training_steps": self.steps}

    def _limits(self) -> tuple[int | None, int | None]:
        """Return the updates and epochs that `compress` of the pruner takes."""
        return None, None


@unit_criteria.register("nni:L1NormPruner")
class L1Norm(NniUnits):
    """NNI's L1NormPruner: the L1 norm of the rows that make a unit (extra nni)."""

    pruner = "L1NormPruner"


@unit_criteria.register("nni:L2NormPruner")
class L2Norm(NniUnits):
    """NNI's L2NormPruner: the L2 norm of the rows that make a unit (extra nni)."""

    pruner = "L2NormPruner"


@unit_criteria.register("nni:FPGMPruner")
class FPGM(NniUnits):
    """NNI's FPGMPruner: the distance of the rows that make a unit from the others of their layer (extra nni)."""

    pruner = "FPGMPruner"


@unit_criteria.register("nni:LevelPruner")
class Level(NniUnits):
    """NNI's LevelPruner, made for single weights: the sum of the magnitudes of a unit's rows (extra nni)."""

    pruner = "LevelPruner"


@unit_criteria.register("nni:TaylorPruner")
class Taylor(TrainedUnits):
    """NNI's TaylorPruner: (weight x gradient)^2 of a unit's rows while it trains (extra nni)."""

    pruner = "TaylorPruner"


@unit_criteria.register("nni:SlimPruner")
class Slim(TrainedUnits):
    """NNI's SlimPruner: factors of a unit's rows that learn while a penalty draws them to zero (extra nni)."""

    pruner = "SlimPruner"


@unit_criteria.register("nni:MovementPruner")
class Movement(TrainedUnits):
    """NNI's MovementPruner: scores of a unit's rows that learn while it trains (extra nni)."""

    pruner = "MovementPruner"

    def _comparable(self, scores: dict[str, Tensor], data: ScoringData) -> dict[str, Tensor]:
        return scores  # below and above 0, and alike in size: Adam moves them by the same step in every layer

    def _duration(self) -> dict[str, int]:
        return {"warmup_step": 0, "cooldown_begin_step": self.steps}

    def _limits(self) -> tuple[int | None, int | None]:
        return self.steps, None


def _is_row(part: Slice, model: nn.Module) -> bool:
    """Return whether a unit's places in a tensor are rows of a layer that NNI masks."""
    layer = model.get_submodule(part.layer)
    transposed = getattr(layer, "transposed", False)
    known = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and not transposed
    return known and part.role == "out" and part.dim == 0 and part.tensor == f"{part.layer}.weight"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back NNI's warnings of newer versions of torch and what it logs."""
    logger = logging.getLogger("nni")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
