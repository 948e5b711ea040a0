"""Prune a bundle by any kind of prune section, and tell what was removed."""

from __future__ import annotations

from dataclasses import replace

from compress.bundle import Bundle
from compress.core.errors import CompressError, InputError
from compress.graph.apply import apply
from compress.graph.exactness import Exactness
from compress.graph.plan import make_plan
from compress.prune.details import plan_details, weight_details
from compress.prune.merge import MergeConfig, fold_all, merge_units, mergeable
from compress.prune.narrow import Details, Surroundings, narrowed, shrunk
from compress.prune.structure import prunable
from compress.prune.structure_config import StructureConfig
from compress.prune.weights import WeightsConfig, prune_weights
from compress.training.masks import apply_masks

PruneConfig = WeightsConfig | StructureConfig | MergeConfig


def prune_bundle(bundle: Bundle, config: PruneConfig, around: Surroundings) -> tuple[Bundle, Details]:
    """Return the pruned bundle and the details of what was removed; the bundle's model may be changed in place."""
    if isinstance(config, WeightsConfig):
        return _masked(bundle, config, around.seed)
    if isinstance(config, MergeConfig):
        return _merged(bundle, config)
    return narrowed(bundle, config, around)


def check_pruning(bundle: Bundle, config: PruneConfig) -> None:
    """Raise what is wrong with `config` for this model, such as globs that match nothing; nothing is changed."""
    inputs = bundle.example_inputs()
    if isinstance(config, WeightsConfig):
        prune_weights(bundle.model, config)
    elif isinstance(config, StructureConfig):
        prunable(bundle.model, inputs, config, bundle.known)
    else:
        mergeable(bundle.known.graph(bundle.model, inputs), bundle.model, config)


def _masked(bundle: Bundle, config: WeightsConfig, seed: int) -> tuple[Bundle, Details]:
    pruning = prune_weights(bundle.model, config, seed)
    masks = dict(bundle.masks or {})
    for name, mask in pruning.masks.items():
        masks[name] = mask & masks[name] if name in masks else mask
    apply_masks(bundle.model, masks)
    macs = bundle.known.parameter_macs(bundle.model, bundle.example_inputs())
    return replace(bundle, masks=masks), weight_details(pruning, macs.uniform_equivalent(masks))


def _merged(bundle: Bundle, config: MergeConfig) -> tuple[Bundle, Details]:
    if bundle.masks:
        raise InputError("prune: merging changes weights that masks hold at zero; put kind: merge before kind: weights")
    model, inputs = bundle.model, bundle.example_inputs()
    folded = fold_all(model, inputs) if config.fold_bn else ()
    graph = mergeable(bundle.known.graph(model, inputs), model, config)
    result = merge_units(model, graph, config)
    plan = make_plan(model, graph, result.kept, folded=folded)
    removal = replace(plan, folded=())  # the norms of `model` are folded already
    if (fault := Exactness(model, inputs).fault(graph, result.kept, finished=removal)) is not None:
        raise CompressError(f"prune: without the units that were merged away {fault}; please report the model")
    small = apply(removal, model)
    details = plan_details(plan) | {"norms_folded": len(folded)}
    return shrunk(bundle, plan, small), details
