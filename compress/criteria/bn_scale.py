"""Network slimming (Liu et al., ICCV 2017): the scale of its batch norm tells what a channel is worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.core.errors import InputError
from compress.criteria import unit_criteria
from compress.criteria.unit_criterion import ScoringData, UnitCriterion, UnitSums, mean_normalised, named_tensors
from compress.graph.graph import Group, Slice


@unit_criteria.register("bn_scale")
class BnScaleUnits(UnitCriterion):
    """The scale of a unit's batch norms (network slimming)."""

    def scores(self, model: nn.Module, groups: Sequence[Group], data: ScoringData) -> dict[str, Tensor]:
        """Return |gamma| of a unit, summed over the batch norms of its group, over the mean of the group.

        Raises:
            InputError: groups have no batch norm; the first of them are named.
        """
        scales = {group.name: _scales(group, model) for group in groups}
        bare = [group.name.rpartition(":")[0] for group in groups if not scales[group.name]]
        if bare:
            named = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
            raise InputError(
                "prune.criterion: 'bn_scale' needs a batch norm behind every layer it prunes; without one are "
                f"{named}; exclude them (prune.exclude) or use another criterion"
            )
        tensors = named_tensors(model)
        sums = UnitSums(lambda name: tensors[name].abs())
        scores = {name: torch.stack([sums.of(part) for part in parts]).sum(0) for name, parts in scales.items()}
        return mean_normalised(scores, data.graph)


def _scales(group: Group, model: nn.Module) -> list[Slice]:
    return [
        part
        for part in group.slices
        if part.tensor.endswith("weight") and isinstance(model.get_submodule(part.layer), _BatchNorm)
    ]
