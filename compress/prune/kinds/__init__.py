"""Kinds of pruning, one file each: what a recipe's section `prune` may be, told apart by `kind`.

A new kind is one new file in this package: a `PruneBase` subclass with a `kind: Literal["name"]` field and the methods
`check` and `prune`, entered with `@prune_kinds.register("name")`. A third party's package does the same in a module of
its own. A kind that changes the tree of modules brings a transform (`compress.transforms`), by which bundles make the
change again; `compress.graph.plan.Plan` is the one that removes units.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from compress.bundle import Bundle
from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.registry import Registry
from compress.core.sections import OneOf
from compress.export.exporters import ExportConfig
from evaluators.datasets import Data
from evaluators.latency.measure import LatencyConfig

Details = dict[str, Any]
"""What a pruning did, as the plain values of its details.json.

A dry run and the report show `layers` (rows of name, kind, before, after), `skipped` (layer, reason), `predicted` (macs
and params, each before and after) and `notes` (sentences), as far as they are there; see `compress.prune.details`.
"""


@dataclass(frozen=True)
class Surroundings:
    """What pruning may use besides the bundle: data, device, seed, and how latency is measured.

    On the way to a budget in several steps, `step` counts from 1 and `first` are the details of the first. `directory`
    is the stage's own, where a run that goes on finds what was measured; None: nothing is written.
    """

    data: Data | None
    device: str
    seed: int
    latency: LatencyConfig
    export: ExportConfig
    step: int = 1
    first: Mapping[str, Any] | None = None
    directory: Path | None = None


class PruneBase(Config):
    """The base of every kind of pruning: its settings, and what it does to a bundle."""

    leaves_masks: ClassVar[bool] = False
    """Whether weights are held at zero afterwards."""
    keeps_weights: ClassVar[bool] = True
    """Whether weights that stay keep their values, so that masks of an earlier pruning still hold."""
    cannot_follow: ClassVar[Mapping[str, str]] = {}
    """Kinds of earlier prunings on which this one cannot follow, and why: a sentence."""

    kind: str

    @property
    def number_of_steps(self) -> int:
        """In how many steps it is done, with fine-tuning between them."""
        return 1

    @property
    def share_left(self) -> float:
        """The share of MACs that is left afterwards, as far as the settings say."""
        return 1.0

    def at_once(self) -> Self:
        """Return the settings that do all steps in one, for a dry run."""
        return self

    @abstractmethod
    def check(self, bundle: Bundle) -> None:
        """Raise what is wrong with the settings for this model, such as globs that match nothing.

        It is asked before time is spent on training; nothing is changed.
        """

    def check_names(self, bundle: Bundle) -> None:
        """Raise where globs match nothing of the model or a package is missing, as far as earlier prunings say nothing.

        It is asked before time is spent on training, of those that follow on others in a list.
        """

    def check_times(self, bundle: Bundle, around: Surroundings) -> None:
        """Raise where a time is asked for that the model takes before any training; asked of the first of a list."""

    def seconds(self, bundle: Bundle, around: Surroundings, evaluation: float) -> float:
        """Return about how many seconds it takes, from those of one evaluation."""
        return evaluation

    @abstractmethod
    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the pruned bundle and what was removed; the bundle's model may be changed in place.

        Raises:
            InputError: the model, the data or the settings do not allow it; the layer or key is named.
        """


prune_kinds: Registry[type[PruneBase]] = Registry("kind of pruning", home="compress.prune.kinds", base=PruneBase)

PruneConfig = Annotated[PruneBase, OneOf(prune_kinds, "kind")]
"""A section `prune` of a recipe: the config of one of the kinds, told apart by `kind`."""


def check_pruning(bundle: Bundle, config: PruneBase) -> None:
    """Raise what is wrong with `config` for this model; nothing is changed."""
    _refuse_masks(bundle, config)
    config.check(bundle)


def prune_bundle(bundle: Bundle, config: PruneBase, around: Surroundings) -> tuple[Bundle, Details]:
    """Return the pruned bundle and the details of what was removed; the bundle's model may be changed in place."""
    _refuse_masks(bundle, config)
    return config.prune(bundle, around)


def after_masks(kind: str) -> str:
    """Return why `kind` cannot follow on a pruning that masks weights."""
    return f"kind: {kind} changes weights that masks hold at zero; put it before kind: weights"


def _refuse_masks(bundle: Bundle, config: PruneBase) -> None:
    if bundle.masks and not config.keeps_weights:
        raise InputError(f"prune: {after_masks(config.kind)}")
