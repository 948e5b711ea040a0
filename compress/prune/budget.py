"""What a pruned model may cost, as a fraction of the dense one, and how that is met."""

from __future__ import annotations

import re
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from compress.core.config import Config
from compress.core.errors import InputError
from compress.graph.cost_model import Counted
from compress.graph.select import Choice, Selector
from compress.graph.widths import WidthRules

TOLERANCE = 0.02

_TIME_OR_FACTOR = re.compile(r"\s*([0-9.]+)\s*(x|us|ms|s)\s*")
Kind = Literal["macs", "params", "latency", "latency_ms"]


class BudgetConfig(Config):
    """How much of the dense model to keep, or how long it may take; exactly one of the four."""

    macs: float | None = Field(None, gt=0, lt=1, description="fraction of the dense MACs to keep, met within 0.02")
    params: float | None = Field(None, gt=0, lt=1, description="fraction of the parameters to keep, met within 0.02")
    latency: float | None = Field(
        None, gt=0, lt=1, description="fraction of the dense latency to keep at most, measured, within 3 %"
    )
    latency_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="milliseconds per batch at most, measured on the target, within 3 %",
    )

    @field_validator("latency", mode="before")
    @classmethod
    def _a_fraction(cls, value: Any) -> Any:
        """Refuse times and factors, with the key or the value that says them."""
        found = _TIME_OR_FACTOR.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value
        if found[2] == "x":
            raise ValueError("a fraction of the dense latency; allowed above 0 and below 1: 0.5 is 2x as fast")
        raise ValueError("a fraction of the dense latency; allowed above 0 and below 1, or a time as latency_ms")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        names = get_args(Kind)
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            allowed = f"{', '.join(names[:-1])} and {names[-1]}"
            raise ValueError(f"give exactly one of {allowed}; got {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the four is given."""
        return next(name for name in get_args(Kind) if getattr(self, name) is not None)

    @property
    def timed(self) -> bool:
        """Whether it is a time, which a target has to tell."""
        return self.kind in ("latency", "latency_ms")

    @property
    def target(self) -> float:
        """The fraction to keep; milliseconds for `latency_ms`."""
        return float(getattr(self, self.kind))

    def __str__(self) -> str:
        """Return the budget as a recipe has it."""
        return f"{self.kind}: {self.target:g}"

    @property
    def counted(self) -> Counted:
        """What criteria count the cost of units in: parameters, or MACs (which also stand in for latency)."""
        return "params" if self.kind == "params" else "macs"


def meet_budget(selector: Selector, budget: BudgetConfig, rules: WidthRules, target: float | None = None) -> Choice:
    """Return the choice that meets a budget of MACs or parameters within its tolerance (relative to the dense model).

    Args:
        selector: over a cost model that counts `budget.counted`.
        budget: what to meet.
        rules: the selector's rules, for the message.
        target: a fraction to meet in place of the budget's (a step on the way to it).

    Raises:
        InputError: the budget cannot be met; the nearest figure and what limits it are named.
    """
    wanted = budget.target if target is None else target
    choice = selector.nearest(wanted)
    if abs(choice.achieved - wanted) > TOLERANCE:
        raise InputError(_unreachable(selector, budget.kind, wanted, choice, rules))
    return choice


def _unreachable(selector: Selector, kind: str, target: float, choice: Choice, rules: WidthRules) -> str:
    """Say what was asked, what the nearest is, and what stands in the way."""
    nearest = choice.achieved
    if nearest > target and nearest - selector.lowest < 1e-9:
        reason = (
            f"every group is at its least width (prune.min_fraction {rules.min_fraction:g}, "
            f"prune.min_width {rules.min_width}, align {rules.align}); most is then left in "
            f"{'; '.join(_heaviest(selector, choice))}"
        )
    elif rules.align != 1:
        reason = f"the widths that align {rules.align} allows are too far apart; a smaller prune.align allows more"
    else:
        reason = "one unit more or less of what can be pruned is more than that; ask for what can be reached"
    return f"prune.budget.{kind}: {target:g} cannot be met; the nearest that can be reached is {nearest:.3f}: {reason}"


def _heaviest(selector: Selector, choice: Choice, most: int = 4) -> list[str]:
    """Return the layers that hold most of what a choice leaves, with their share of the dense cost and why it stays."""
    cost = selector.cost
    left = cost.by_layer(choice.widths)
    why = {skip.layer: skip.reason for skip in selector.graph.skipped}
    ranked = sorted(left, key=lambda layer: -left[layer])[:most]
    unit = "MACs" if cost.counted == "macs" else "parameters"
    return [
        f"{layer or '(top)'!r}, {left[layer] / cost.dense:.0%} of the {unit}"
        + (f" ({why[layer]})" if layer in why else "")
        for layer in ranked
    ]
