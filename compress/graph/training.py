"""What the code of training does beyond that of evaluation: whether the trace has understood it by itself."""

from __future__ import annotations

from collections import Counter

import torch

from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.rules import POINTWISE, RULES
from compress.graph.trace import Step, Trace

_AS_THEY_ARE = frozenset((
    "clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "native_dropout", "dropout", "bernoulli",
    "uniform_", "normal_", "bernoulli_", "exponential_", "random_", "log_normal_", "copy_", "fill_", "zero_",
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
))  # fmt: skip
_MADE = frozenset(("new_zeros", "new_ones", "new_full", "new_empty"))


def shows_nothing_new(found: Trace) -> bool:
    """Return whether the pass in training can fail on no width with which the one in evaluation is right.

    Both do the same but for operations whose result has the shape of their operands, whatever that is, and others that
    see no width which may go. Stochastic depth, noise like its input and dropout are of that kind.
    """
    told: dict[Dim, object] = {}

    def of(dims: tuple[Dim, ...]) -> tuple[object, ...]:
        return tuple(told[dim] if dim in told else told.setdefault(dim, _told(dim)) for dim in dims)

    def known(step: Step) -> tuple[object, ...]:
        return step.name, step.module, *map(of, step.inputs), "to", *map(of, step.outputs)

    usual = Counter(map(known, found.steps))
    usual.subtract(map(known, found.training_steps))
    return all(_follows(step) for step in found.training_steps if usual[known(step)] < 0)


def _told(dim: Dim) -> object:
    """Return what tells a dimension from others: the widths in it, and the sizes of what stays."""
    return tuple(tuple(axis if axis.frozen is None else axis.size for axis in part) for part in axes.expand(dim))


def _follows(step: Step) -> bool:
    """Return whether a step is right for any widths of what it is given."""
    if step.name in _AS_THEY_ARE or RULES.get(step.name) is POINTWISE or _is_pointwise(step.name):
        return True
    seen = step.outputs if step.name in _MADE else (*step.inputs, *step.outputs)
    return all(axes.is_frozen(dim) for dims in seen for dim in dims)


def _is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, each).tags for each in packet.overloads())
