"""`prune: {kind: weights}`: masks over single weights."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from compress.bundle import Bundle
from compress.prune.details import weight_details
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.prune.weights import WeightsConfig, prune_weights
from compress.training.masks import apply_masks


@prune_kinds.register("weights")
class Weights(WeightsConfig, PruneBase):
    """Weight pruning by masks: the file does not shrink, the weights become zeros."""

    leaves_masks: ClassVar[bool] = True

    def check(self, bundle: Bundle) -> None:
        """Raise where a glob matches nothing, or nothing takes part."""
        prune_weights(bundle.model, self)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle with its masks, those of earlier prunings among them, applied to the weights."""
        pruning = prune_weights(bundle.model, self, around.seed)
        masks = dict(bundle.masks or {})
        for name, mask in pruning.masks.items():
            masks[name] = mask & masks[name] if name in masks else mask
        apply_masks(bundle.model, masks)
        macs = bundle.known.parameter_macs(bundle.model, bundle.example_inputs())
        return replace(bundle, masks=masks), weight_details(pruning, macs.uniform_equivalent(masks))
