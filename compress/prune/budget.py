"""What a pruned model may cost, as a fraction of the dense one, and how that is met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.progress import say
from compress.graph.cost_model import Counted
from compress.graph.select import Choice, Selector
from compress.graph.widths import WidthRules

TOLERANCE = {"macs": 0.02, "params": 0.02, "latency": 0.05}
MEASUREMENTS = 8


class BudgetConfig(Config):
    """How much of the dense model to keep; exactly one of the three."""

    macs: float | None = Field(None, gt=0, lt=1, description="fraction of the dense MACs to keep, met within 0.02")
    params: float | None = Field(None, gt=0, lt=1, description="fraction of the parameters to keep, met within 0.02")
    latency: float | None = Field(
        None, gt=0, lt=1, description="fraction of the dense latency to keep, measured while pruning, met within 0.05"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in TOLERANCE if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of macs, params and latency; got {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> Literal["macs", "params", "latency"]:
        """Which of the three is given."""
        return "macs" if self.macs is not None else "params" if self.params is not None else "latency"

    @property
    def target(self) -> float:
        """The fraction to keep."""
        return float(getattr(self, self.kind))

    @property
    def counted(self) -> Counted:
        """What units cost in while choosing: parameters, or MACs (which also stand in for latency)."""
        return "params" if self.kind == "params" else "macs"


def meet_budget(
    selector: Selector,
    budget: BudgetConfig,
    rules: WidthRules,
    measure: Callable[[Choice], float] | None = None,
    target: float | None = None,
) -> Choice:
    """Return the choice that meets the budget within its tolerance (relative to the dense model).

    Args:
        selector: over a cost model that counts `budget.counted`.
        budget: what to meet.
        rules: the selector's rules, for the message.
        measure: choice -> fraction of the dense latency; needed for a latency budget, called at most 8 times.
        target: a fraction to meet in place of the budget's (a step on the way to it).

    Raises:
        InputError: the budget cannot be met; the nearest figure and what limits it are named.
    """
    wanted = budget.target if target is None else target
    if budget.kind == "latency":
        if measure is None:
            raise ValueError("a latency budget needs a measure")
        choice, achieved = _measured(selector, wanted, measure)
    else:
        choice = selector.nearest(wanted)
        achieved = choice.achieved
    if abs(achieved - wanted) > TOLERANCE[budget.kind]:
        raise InputError(_unreachable(selector, budget.kind, wanted, achieved, choice, rules))
    return choice


def _measured(selector: Selector, target: float, measure: Callable[[Choice], float]) -> tuple[Choice, float]:
    """Find the fraction of MACs whose measured latency is nearest to `target`, by bracketed interpolation.

    Latency is noisy and costs an export each time, so the search stops at half the tolerance.
    """
    low: tuple[float, float | None] = (selector.lowest, None)  # (MACs, latency); that of the least widths is not known
    high = (1.0, 1.0)
    guess = max(target, selector.lowest)
    tried: dict[tuple[int, ...], tuple[Choice, float]] = {}
    for _ in range(MEASUREMENTS):
        choice = selector.nearest(guess)
        key = tuple(choice.widths.values())
        if key in tried:
            break
        latency = measure(choice)
        tried[key] = choice, latency
        say(f"latency budget {target:.2f}: {choice.achieved:.3f} of the MACs take {latency:.3f} of the latency")
        if abs(latency - target) <= TOLERANCE["latency"] / 2:
            break
        if latency > target:
            high = choice.achieved, latency
        else:
            low = choice.achieved, latency
        guess = _between(low, high, target)
    return min(tried.values(), key=lambda pair: abs(pair[1] - target))


def _between(low: tuple[float, float | None], high: tuple[float, float], target: float) -> float:
    """Return where the line between two measured points meets `target`, kept off the ends of the bracket."""
    width = high[0] - low[0]
    if low[1] is None:
        return max(low[0], min(high[0] * target / high[1], high[0] - 0.1 * width))
    share = (target - low[1]) / (high[1] - low[1]) if high[1] > low[1] else 0.5
    return low[0] + width * min(max(share, 0.1), 0.9)


def _unreachable(
    selector: Selector, kind: str, target: float, nearest: float, choice: Choice, rules: WidthRules
) -> str:
    """Say what was asked, what the nearest is, and what stands in the way."""
    if nearest > target and choice.achieved - selector.lowest < 1e-9:
        reason = (
            f"every group is at its least width (prune.min_fraction {rules.min_fraction:g}, "
            f"prune.min_width {rules.min_width}, align {rules.align}); most is then left in "
            f"{'; '.join(_heaviest(selector, choice))}"
        )
    else:
        reason = f"the widths that align {rules.align} allows are too far apart; a smaller prune.align allows more"
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
