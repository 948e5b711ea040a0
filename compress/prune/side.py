"""The plan of a ladder's side network: every width of a model divided by one number, the best units kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from compress.core.errors import InputError
from compress.core.tensors import Inputs
from compress.graph.exactness import Exactness
from compress.graph.graph import Graph
from compress.graph.plan import Plan, make_plan
from compress.graph.select import strongest
from compress.prune.structure import Setting, scored_units
from compress.prune.structure_config import StructureConfig


def side_plan(
    model: nn.Module, graph: Graph, example_inputs: Inputs, reduction: int, config: StructureConfig, setting: Setting
) -> Plan:
    """Return the plan that leaves 1/reduction of every width of `model` but the number of its heads.

    Channels that a residual stream shares are one width, so that one set of indices stays of it everywhere.

    Raises:
        InputError: the model cannot do with so little, or the criterion cannot score it.
    """
    scored, scores = scored_units(model, graph, config, setting)
    heads = {group.name for group in scored.groups if group.kind == "heads"}
    kept = {
        name: strongest(score, max(1, round(len(score) / reduction)))
        for name, score in scores.items()
        if name not in heads
    }
    plan = make_plan(model, scored, kept)
    fault = Exactness(model, example_inputs).fault(scored, kept, finished=plan)
    if fault is not None:
        raise InputError(f"ladder.reduction: the model does not run at a width of 1/{reduction}: {fault}")
    return replace(plan, attributes={name: _fused(values) for name, values in plan.attributes.items()})


def _fused(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave attention fused: the side network learns anew, and maps of attention are what takes the most memory."""
    return {name: value for name, value in attributes.items() if name != "fused_attn"}
