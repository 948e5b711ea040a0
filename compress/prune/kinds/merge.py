"""`prune: {kind: merge}`: channels that are alike become one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from compress.bundle import Bundle
from compress.core.errors import CompressError
from compress.graph.apply import apply
from compress.graph.exactness import Exactness
from compress.graph.plan import make_plan
from compress.prune.details import plan_details
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.prune.merge import MergeConfig, fold_all, merge_units, mergeable
from compress.prune.narrow import shrunk


@prune_kinds.register("merge")
class Merge(MergeConfig, PruneBase):
    """Merge channels that are alike (IFM): no data, no training, tensors really shrink."""

    keeps_weights: ClassVar[bool] = False

    def check(self, bundle: Bundle) -> None:
        """Raise where the model cannot be traced, or a glob matches nothing."""
        mergeable(bundle.known.graph(bundle.model, bundle.example_inputs()), bundle.model, self)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle with its units merged, and its batch norms folded where that is asked for."""
        model, inputs = bundle.model, bundle.example_inputs()
        folded = fold_all(model, inputs) if self.fold_bn else ()
        graph = mergeable(bundle.known.graph(model, inputs), model, self)
        result = merge_units(model, graph, self)
        plan = make_plan(model, graph, result.kept, folded=folded)
        removal = replace(plan, folded=())  # the norms of `model` are folded already
        if (fault := Exactness(model, inputs).fault(graph, result.kept, finished=removal)) is not None:
            raise CompressError(f"prune: without the units that were merged away {fault}; please report the model")
        small = apply(removal, model)
        details = plan_details(plan) | {"norms_folded": len(folded)}
        return shrunk(bundle, plan, small), details
