"""IFM, iterative feature merging (Chen, Zhou and Yan, "Going beyond neural network feature similarity", ICLR 2024).

Two units whose incoming and outgoing weights are nearly alike become one, without data or training. The width that is
left at a threshold beta is the layer's "feature complexity".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import CompressError
from compress.core.modes import evaluating
from compress.core.progress import track
from compress.core.tensors import Inputs, call, flat
from compress.graph.apply import fold_batch_norms
from compress.graph.fold import foldable_pairs
from compress.graph.graph import Graph, Skip
from compress.graph.scope import in_scope
from compress.prune.merge_arithmetic import GroupState, Merging, Rule


class MergeConfig(Config):
    """Merge channels that are alike (IFM): no data, no training, tensors really shrink."""

    kind: Literal["merge"] = Field("merge", description="channels that are alike are merged")
    criterion: Literal["ifm"] = Field("ifm", description="iterative feature merging")
    beta: float = Field(
        0.1, ge=0, le=1, description="merge while the least squared distance is at most beta x the largest"
    )
    rule: Rule = Field(
        "mean_in_sum_out",
        description="average incoming weights and add outgoing ones (exact for duplicates), or as the paper's code",
    )
    fold_bn: bool = Field(True, description="fold batch norms into the layers before them first")
    freeze_max: bool = Field(False, description="take the largest distance once, before the first merge")
    max_ratio: float = Field(1.0, gt=0, le=1, description="share of its units that a layer may lose at most")
    min_width: int = Field(1, ge=1, description="units that every layer keeps at least")
    include: list[str] = Field([], description="globs over layers; if given, only these are merged")
    exclude: list[str] = Field([], description="globs over layers that stay whole")


@dataclass(frozen=True)
class MergeResult:
    """By group the kept units (sorted) and the originals inside each."""

    kept: dict[str, Tensor]
    counts: dict[str, Tensor]


def mergeable(graph: Graph, model: nn.Module, config: MergeConfig) -> Graph:
    """Return the groups of `graph` that `config` lets merging touch; those tied to others stay whole.

    Raises:
        InputError: a glob matches nothing.
    """
    return in_scope(_without_ties(graph), model, ("channels", "mlp"), config.include, config.exclude)


def merge_units(model: nn.Module, graph: Graph, config: MergeConfig) -> MergeResult:
    """Merge the units of the groups of `graph` in place; what was merged away is zero and not among `kept`."""
    merging = Merging(model, graph.groups, config.rule)
    for sweep in track(range(max(group.size for group in graph.groups)), "merging"):
        if not _sweep(merging, config, sweep):
            break
    merging.write_back(model)
    kept = {state.group.name: state.units for state in merging.states}
    counts = {state.group.name: state.counts[state.units].long() for state in merging.states}
    return MergeResult(kept, counts)


def fold_all(model: nn.Module, example_inputs: Inputs) -> tuple[tuple[str, str], ...]:
    """Fold every batch norm that can be folded, in place, and return the pairs (layer, norm).

    Raises:
        CompressError: the output is no longer the same.
    """
    pairs = foldable_pairs(model, example_inputs)
    before = _output(model, example_inputs)
    fold_batch_norms(model, pairs)
    error = float((_output(model, example_inputs) - before).norm() / before.norm().clamp(min=1e-30))
    if error > 1e-3:
        raise CompressError(
            f"folding {len(pairs)} batch norms changed the output by {error:.1e}; set prune.fold_bn: false"
        )
    return pairs


def _sweep(merging: Merging, config: MergeConfig, sweep: int) -> bool:
    """Visit each group once; return whether anything was merged."""
    merged = False
    for state in merging.states:
        pair = _pair(state, config) if sweep < int(config.max_ratio * state.group.size) else None
        if pair is not None:
            merging.merge(state, *pair)
            merged = True
    return merged


def _pair(state: GroupState, config: MergeConfig) -> tuple[int, int] | None:
    """Return the two units of a group to merge next, if there are any."""
    if len(state.units) <= config.min_width:
        return None
    i, j, distance, largest = state.closest()
    most = state.first_maximum if config.freeze_max else largest
    return None if distance > config.beta * most else (i, j)


def _output(model: nn.Module, example_inputs: Inputs) -> Tensor:
    with evaluating(model), torch.no_grad():
        return flat(call(model, example_inputs))


def _without_ties(graph: Graph) -> Graph:
    """Leave groups whole that must keep the same fraction as another: merging chooses widths one by one."""
    tied: Sequence[str] = [name for tie in graph.ties for name in tie]
    reason = "it must keep the same fraction as another layer, which merging cannot promise"
    skips = [Skip(layer, reason) for name in tied for layer in graph.group(name).layers]
    groups = tuple(group for group in graph.groups if group.name not in tied)
    return replace(graph, groups=groups, skipped=(*graph.skipped, *skips), ties=())
