"""`prune: {kind: hypercomplex}`: weights become sums of n Kronecker products, about 1/n of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from compress.bundle import Bundle
from compress.core.formatting import count
from compress.core.progress import track
from compress.graph.graph import Skip
from compress.prune.details import replacement_details
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.prune.kronecker import fresh_sum, nearest_sum
from compress.prune.repair import renew_norms
from compress.prune.replaceable import Layer, Replacement, replace_layers, replaceable
from compress.transforms.hypercomplex import Hypercomplex, kronecker_sum, unfit
from compress.transforms.layers import Plain

BN_BATCHES = 20
"""Training batches on which batch norms are estimated anew."""


@prune_kinds.register("hypercomplex")
class HypercomplexKind(PruneBase):
    """Sums of Kronecker products in place of weights (PHC layers): fewer parameters to train and keep, no speed."""

    keeps_weights: ClassVar[bool] = False

    kind: Literal["hypercomplex"] = Field("hypercomplex", description="weights become sums of Kronecker products")
    n: int = Field(4, ge=2, le=16, description="products in each sum; parameters become about 1/n")
    init: Literal["weights", "fresh"] = Field(
        "weights", description="start from the sum nearest to the given weights, or from new ones of the right variance"
    )
    include: list[str] = Field([], description="globs over layers; if given, only these are replaced")
    exclude: list[str] = Field([], description="globs over layers that stay")

    def check(self, bundle: Bundle) -> None:
        """Raise where a glob matches nothing, or no layer can be such a sum."""
        self._layers(bundle)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle with hypercomplex layers, tried out against ordinary ones of the same weights."""
        layers, skipped = self._layers(bundle)
        before = bundle.costs()
        generator = torch.Generator().manual_seed(around.seed)
        new, rows, left_out = [], [], []
        for layer in track(layers, "Kronecker sums"):
            given = layer.layer.weight.detach()
            if self.init == "weights":
                (mixing, blocks), error = nearest_sum(given, self.n)
                left_out.append(error)
            else:
                mixing, blocks = fresh_sum(given, self.n, generator)
            new.append(Replacement(layer, kronecker_sum(mixing, blocks), {"mixing": mixing, "blocks": blocks}))
            after = mixing.numel() + blocks.numel()
            rows.append({"name": layer.name, "kind": "parameters", "before": layer.params, "after": after})
        transform = Hypercomplex(n=self.n, layers=tuple(layer.name for layer in layers))
        bundle = replace_layers(bundle, transform, new)
        renew_norms(bundle.model, around, BN_BATCHES)
        costs = before, bundle.costs()
        return bundle, replacement_details(self.kind, rows, skipped, costs, self._notes(rows, left_out))

    def _layers(self, bundle: Bundle) -> tuple[list[Layer], list[Skip]]:
        """Return the layers that become sums, and the others with the reason."""
        model, inputs = bundle.model, bundle.example_inputs()
        return replaceable(model, inputs, self._unfit, self.include, self.exclude)

    def _unfit(self, layer: Plain) -> str | None:
        size = layer.weight.numel()
        if (reason := unfit(layer, self.n)) is not None:
            return reason
        sums = self.n**3 + size // self.n
        return None if sums < size else f"sums of {self.n} products would have {sums} parameters, it has {size}"

    def _notes(self, rows: Sequence[Mapping[str, Any]], left_out: list[float]) -> list[str]:
        before, after = (sum(row[key] for row in rows) for key in ("before", "after"))
        if left_out:
            start = (
                f"The nearest sums leave out {sum(left_out) / len(left_out):.0%} of the weights' squares on average "
                f"({min(left_out):.0%} to {max(left_out):.0%}): they are a start to train from."
            )
        else:
            start = "The weights are new: the model has to be trained."
        return [
            f"{len(rows)} layers are sums of {self.n} Kronecker products: {count(after)} weights in place of "
            f"{count(before)}, in training and in the bundle. MACs, latency, memory and the size of the ONNX file stay "
            "those of the dense model, for which the sums are multiplied out; training takes a little more of both.",
            start,
        ]
