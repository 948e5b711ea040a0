"""What unit criteria share: the data they may use, and sums over the weights of each unit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from compress.core.config import Config
from compress.core.errors import InputError
from compress.graph.cost_model import CostModel, Counted
from compress.graph.graph import Graph, Group, Slice
from evaluators.datasets.batch import Batch
from evaluators.tasks import UNSIZED, Task

Batches = Callable[[], Iterable[Batch]]
_DATA_FREE = "bn_scale, dimap, fpgm, lamp, magnitude, random"
DRAW = 8  # images per gradient: its square is one draw of a random value, so many small draws tell more than few large


@dataclass(frozen=True)
class ScoringData:
    """What a unit criterion may look at besides weights.

    `graph` is the unexpanded graph, `batches` yields what scores may be estimated on (None: there is no data), `task`
    says what the model loses on them, `counted` is what one unit costs in: what the budget is given in. Criteria that
    go by gradients note in `reached` the weights that have one. `renewed` is called before each draw, so that the model
    keeps nothing of the one before.
    """

    graph: Graph
    batches: Batches | None = None
    device: torch.device | str = "cpu"
    generator: Generator = field(default_factory=lambda: Generator().manual_seed(0))
    counted: Counted = "macs"
    task: Task = UNSIZED
    reached: set[str] = field(default_factory=set)
    renewed: Callable[[], None] = lambda: None

    def costs(self) -> dict[str, float]:
        """Return the fraction of the whole model's cost that removing one unit of each group saves."""
        model = CostModel(self.graph, self.counted)
        return {name: max(saved, 1) / model.dense for name, saved in model.savings().items()}

    def draws(self, criterion: str) -> Iterator[Batch]:
        """Yield a few samples at a time, on the device; without data the criterion is refused by name."""
        if self.batches is None:
            raise InputError(
                f"prune.criterion: {criterion!r} needs data to score on, and the recipe has none (data.name: none); "
                f"allowed without data: {_DATA_FREE}"
            )
        for batch in self.batches():
            for few in batch.to(self.device, copy=True).split(DRAW):  # a copy: a model may change it in place
                self.renewed()
                yield few


class UnitCriterion(Config):
    """Scores units (channels, heads, MLP units); those of low scores are removed.

    The fields of a subclass are what the recipe may say beside `criterion`, in `options`.
    """

    needs_loss: ClassVar[bool] = False
    """Whether it looks at gradients of the task's loss."""

    def check(self) -> None:
        """Raise InputError where a package that it needs is not installed."""

    def unfit(self, task: Task) -> str | None:
        """Return that the task has no loss, where one is needed."""
        if task.has_loss or not self.needs_loss:
            return None
        return f"the criterion goes by gradients of a loss, and task {task.name} has none; allowed: {_DATA_FREE}, obs"

    @abstractmethod
    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return group name -> float64 (size,): how much each unit is worth; comparable between groups.

        Model and weights stay as they are. Draws come from `data.generator`.

        Raises:
            InputError: it cannot score this model, or needs data and there is none.
        """


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a model by name, detached."""
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def matrices(group: Group, role: Literal["in", "out"] | None = None) -> list[Slice]:
    """Return the places of a group in weight matrices and kernels: norms, biases and tables are left out."""
    return [part for part in group.slices if part.role != "vector" and role in (None, part.role)]


class UnitSums:
    """Sums of `values(tensor name)` over the entries that belong to each unit; a dimension is reduced only once."""

    def __init__(self, values: Callable[[str], Tensor]) -> None:
        self.values = values
        self.reduced: dict[tuple[str, int], Tensor] = {}

    def along(self, part: Slice) -> Tensor:
        """Return the sum at each position of the dimension that `part` indexes (float64, on the CPU)."""
        key = part.tensor, part.dim
        if key not in self.reduced:
            values = self.values(part.tensor)
            rest = [dim for dim in range(values.dim()) if dim != part.dim]
            self.reduced[key] = (values.sum(rest, dtype=torch.float64) if rest else values.double()).cpu()
        return self.reduced[key]

    def of(self, part: Slice) -> Tensor:
        """Return the sum for each unit of `part`, shape (size,)."""
        return self.along(part)[part.positions].sum((1, 2))


def energies(model: nn.Module, norm: int = 2) -> UnitSums:
    """Return sums of |w| (norm 1) or w^2 (norm 2) over the weights of units."""
    tensors = named_tensors(model)

    def values(name: str) -> Tensor:
        return tensors[name].abs() if norm == 1 else tensors[name].to(torch.float64, copy=True).square_()

    return UnitSums(values)


def mean_normalised(scores: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Divide the scores of each group by their mean over its units, so that groups of any scale can be compared.

    This is what torch-pruning does before a global ranking. Where a criterion sees the repeats of a unit one by
    one, the mean is that of the units that the repeats add up to.
    """
    mean = {name: score.sum() / graph.group(name).size for name, score in scores.items()}
    return {name: score / mean[name] if mean[name] > 0 else score for name, score in scores.items()}


def per_cost(scores: Mapping[str, Tensor], data: ScoringData) -> dict[str, Tensor]:
    """Divide the scores by what a unit of each group costs, for criteria that estimate a loss to trade for cost."""
    costs = data.costs()
    return {name: score / costs[name] for name, score in scores.items()}
