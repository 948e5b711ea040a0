"""`prune: {kind: structure}`: whole channels, heads, MLP units and blocks go."""

from __future__ import annotations

from typing import Self

from compress.bundle import Bundle
from compress.prune.by_latency import refuse_times
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.prune.narrow import narrowed
from compress.prune.seconds import pruning_seconds
from compress.prune.structure import prunable, refuse_unreachable
from compress.prune.structure_config import StructureConfig


@prune_kinds.register("structure")
class Structure(StructureConfig, PruneBase):
    """Removal of whole channels, heads, head widths, MLP units and residual blocks: tensors really shrink."""

    @property
    def number_of_steps(self) -> int:
        """In how many steps the budget is reached, with fine-tuning between them."""
        return self.steps

    @property
    def share_left(self) -> float:
        """The share of MACs that a budget of MACs leaves."""
        return (self.budget.macs if self.budget is not None else None) or 1.0

    def at_once(self) -> Self:
        """Return the settings that reach the budget in one step, without what only weights profit by."""
        return self.model_copy(update={"steps": 1, "compensate": False})

    def check(self, bundle: Bundle) -> None:
        """Raise where the model cannot be traced, a glob matches nothing, or so little cannot be left of its shapes."""
        self.options.check()
        refuse_unreachable(prunable(bundle.model, bundle.example_inputs(), self, bundle.known), self)

    def check_names(self, bundle: Bundle) -> None:
        """Raise where a glob matches nothing, or the criterion needs a package that is not there."""
        self.options.check()
        prunable(bundle.model, bundle.example_inputs(), self, bundle.known)

    def check_times(self, bundle: Bundle, around: Surroundings) -> None:
        """Raise where layers cannot be timed, or the model is faster than a budget in milliseconds as it is."""
        refuse_times(bundle, self, around)

    def seconds(self, bundle: Bundle, around: Surroundings, evaluation: float) -> float:
        """Return about how many seconds measuring, compensating and evaluating take."""
        return pruning_seconds(bundle.model, self, around.data, evaluation)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle without the units that the settings remove; with several steps, after one of them."""
        return narrowed(bundle, self, around)
