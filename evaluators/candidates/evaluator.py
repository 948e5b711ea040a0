"""Evaluators: what an architecture is worth, as named metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from compress.core.config import Config
from compress.core.errors import CompressError
from compress.core.registry import Registry
from compress.core.sections import OneOf

if TYPE_CHECKING:
    from evaluators.datasets import Data
    from evaluators.tasks import TaskConfig
    from spaces.architecture import Architecture
    from spaces.space import Space
    from spaces.zoo import ModelConfig

Metrics = dict[str, float]
"""Metric name (the task's, params, macs, latency_ms, ...) to value; accuracies are 0-100, latencies milliseconds."""

Report = Callable[[int, float], bool]
"""Told (step, value so far); True means: stop, this trial is not worth going on with."""


class Evaluator(ABC):
    """Measures architectures of one space. The same architecture and seed give the same metrics."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that `free` and `evaluate` can give together."""

    def free(self, arch: Architecture) -> Metrics:
        """Return the metrics that cost next to nothing, so that constraints on them are checked before any training."""
        return {}

    @abstractmethod
    def evaluate(self, arch: Architecture, wanted: Collection[str], seed: int, report: Report | None = None) -> Metrics:
        """Return the `wanted` metrics (others may be there too).

        Raises:
            Stopped: `report` said that it is not worth going on.
        """

    @property
    def has_given(self) -> bool:
        """Whether `given` can tell what the model is worth that candidates are versions of, or learn from."""
        return False

    def given(self) -> Metrics:
        """Return the metrics of that model, found in the same way as those of candidates."""
        raise NotImplementedError

    def weights_path(self, arch: Architecture, seed: int) -> Path | None:
        """Return where the weights of an evaluated network are, if they are kept; the file may be absent.

        They are those of `space.build(space.canonical(arch), ...)`.
        """
        return None

    def looked_up(self, arch: Architecture) -> Metrics:
        """Return those metrics of `arch` that are read off a file, so that a search that goes on finds them again."""
        return {}

    @property
    def digest(self) -> str | None:
        """What stands for files that all metrics depend on, so that a search does not go on with others; None: none."""
        return None

    def tidy(self) -> None:  # noqa: B027
        """Delete what only a search under way needs."""


def numbers(given: Any, giver: str) -> Metrics:
    """Return the metrics that an evaluator gave, as floats: it may be a third party's.

    Scalars of NumPy and torch are taken; numbers that are not finite are left for the search to judge.

    Raises:
        CompressError: naming the `giver`: it is no mapping of names, or a value is no number.
    """
    if not isinstance(given, Mapping):
        raise CompressError(f"{giver} gave {given!r:.80}; allowed: a mapping of metrics to numbers")
    found = {}
    for name, value in given.items():
        try:
            if not isinstance(name, str) or isinstance(value, str | bytes):
                raise TypeError
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CompressError(f"{giver} gave {name} = {value!r:.80}; allowed: a number") from error
    return found


class Stopped(Exception):
    """An evaluation ended early because the pruner said so; carries the last value reported."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value
        super().__init__(f"stopped at step {step}")


@dataclass(frozen=True)
class EvaluatorContext:
    """What an evaluator may use.

    Attributes:
        space: whose architectures are evaluated.
        data: images, or None.
        device: such as "cpu" or "cuda:0".
        seed: the recipe's.
        directory: where it may keep files of its own (created on demand).
        model: the recipe's section `model`, for spaces and evaluators that start from a given network.
        supernet: where the run keeps the supernet that it has trained, if it has.
    """

    space: Space
    data: Data | None
    device: str
    seed: int
    directory: Path
    model: ModelConfig | None = None
    supernet: Path | None = None


class EvaluatorBase(Config):
    """Options of an evaluator. A subclass has a field `kind: Literal["..."]`, its options, and `make`."""

    resumable: ClassVar[bool] = True
    """Whether a search that is finished, and tidied up, can go on with more trials."""
    preloaded: ClassVar[tuple[str, ...]] = ("compress.training.engine", "lightning_fabric", "timm")
    """Modules that an evaluation needs and that take long to import, for workers: none may ask for a device."""
    kind: str

    @property
    def reports(self) -> bool:
        """Whether it tells, in the middle of an evaluation, what it has found so far, so that a pruner may stop it."""
        return False

    def metrics_for(self, task: TaskConfig, sections: Mapping[str, Any]) -> Collection[str] | None:
        """Return the metrics of networks for `task`, where the recipe's sections tell them; else None."""
        return None

    @abstractmethod
    def make(self, context: EvaluatorContext) -> Evaluator:
        """Return the evaluator; raises InputError where it cannot serve the search."""


evaluators: Registry[type[EvaluatorBase]] = Registry(
    "evaluator", home=("evaluators.candidates", "search.supernets"), base=EvaluatorBase
)

EvaluatorConfig = Annotated[EvaluatorBase, OneOf(evaluators, "kind")]
"""The section `search.evaluator` of a recipe: the config of one of the evaluators, told apart by `kind`."""
