"""Removal of units and residual blocks: what structure pruning and merging have planned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema
from torch import nn

from compress.core.tensors import Inputs
from compress.graph.apply import apply
from compress.graph.plan import Plan
from compress.transforms import Transform, transforms


def _plan(value: Any) -> Plan:
    return value if isinstance(value, Plan) else Plan.from_dict(value)


PlanField = Annotated[Plan, PlainValidator(_plan), PlainSerializer(Plan.to_dict), WithJsonSchema({"type": "object"})]
"""A field of a transform that holds a plan."""


@transforms.register("narrow")
class Narrow(Transform):
    """Remove the units and blocks that a plan names."""

    kind: Literal["narrow"] = "narrow"
    plan: PlanField = Field(description="what is removed")

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the smaller model; raises InputError where the plan is for another one."""
        return apply(self.plan, model)

    def then(self, later: Transform) -> Transform | None:
        """Return one removal for two in a row."""
        return Narrow(plan=self.plan.then(later.plan)) if isinstance(later, Narrow) else None
