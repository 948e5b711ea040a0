"""A run in step with the trace: the dense model's, whose results are kept, and a narrowed model's, held against them.

The steps are those of the trace (`compress.graph.graph.Record`). Where a model does something else than it did then
(its shapes or its path depend on values), what follows is compared by its outputs alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.core.tensors import tensors_in
from compress.graph.kept_positions import Positions
from compress.graph.trace import LAYOUT, Step

_FILLED = frozenset((
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "rand_like", "randint_like",
    "randn_like", "uniform_",
))  # fmt: skip
_UNINITIALISED = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
RANKING = frozenset(("topk", "sort"))
"""Operations that give values and their places by rank: rounding decides in which order those come that are equal."""
OVER_A_WIDTH = frozenset(("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm"))


@dataclass(frozen=True)
class Draw:
    """What the dense model drew at random.

    `given` is what it was drawn from; `outputs` are the results, at a step (number `place`) those at the positions that
    stay, or None where these cannot be told.
    """

    name: str
    place: int | None
    given: list[Tensor]
    outputs: list[Tensor] | None


@dataclass
class Pass:
    """One forward pass: its mode, its steps, and what the dense model computed in it."""

    mode: Callable[[nn.Module], contextlib.AbstractContextManager[None]]
    steps: Sequence[Step]
    values: list[list[Tensor | None]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    whole: bool = True  # the dense model did what it did when it was traced
    draws: list[Draw] = field(default_factory=list)
    ranks: list[Tensor | None] = field(default_factory=list)  # the places that each ranking named, narrowed
    kept: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # boxes, scores and what suppression left


class Following(TorchDispatchMode):
    """Walks along the recorded steps as a model runs, until it does something else."""

    def __init__(self, one: Pass, positions: Positions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.one, self.positions = one, positions
        self.place, self.aligned = 0, True
        self.draws = self.rankings = self.suppressions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, draws = _about(func)
        if name in LAYOUT:
            out = func(*args, **kwargs)
            return out.zero_() if name in _UNINITIALISED else out
        steps, step = self.one.steps, None
        if self.aligned:
            if self.place < len(steps) and steps[self.place].name == name:
                step = steps[self.place]
            else:
                self.left()
        given = [each.detach().clone() for each in _drawn_from(name, args, kwargs)] if draws else []
        out = self.run(func, args, kwargs, step)
        if name == "nms":
            out = self.suppressed(args[0], args[1], out)
            self.suppressions += 1
        found = [out] if isinstance(out, Tensor) else list(tensors_in(out))
        if draws:
            self.drawn(step, name, given, found)
            self.draws += 1
        if name in RANKING:
            self.ranked(step, args[0], _dim(name, args, kwargs), found)
            self.rankings += 1
        if step is not None:
            self.seen(step, found[:1] if step.name in OVER_A_WIDTH else found)  # their statistics are no one's input
            self.place += self.aligned
        return out

    def left(self) -> None:
        """From here on the model does something else than it did when it was traced."""
        self.aligned = False

    def run(self, func: Any, args: Any, kwargs: Any, step: Step | None) -> Any:
        """Run an operation, which is `step` of the trace (None: another one)."""
        return func(*args, **kwargs)

    def drawn(self, step: Step | None, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        """Let both models draw the same from the same."""
        raise NotImplementedError

    def ranked(self, step: Step | None, values: Tensor, dim: int, outputs: list[Tensor]) -> None:
        """Let both models rank `values`, which are as good as equal, in the same order along `dim`."""
        raise NotImplementedError

    def suppressed(self, boxes: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
        """Return which boxes (N, 4) suppression leaves: in both models the same where boxes and scores are."""
        raise NotImplementedError

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        """Look at what `step` gave."""
        raise NotImplementedError


def _drawn_from(name: str, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Yield the tensors that decide what is drawn; what is there before a tensor is filled does not."""
    yield from tensors_in(args[1:] if name in _FILLED else args)
    yield from tensors_in(kwargs)


def _dim(name: str, args: Any, kwargs: Any) -> int:
    """Return along which dimension an operation of `RANKING` goes."""
    given = args[2:3] if name == "topk" else [each for each in args[1:] if type(each) is int]
    return int(given[0] if given else kwargs.get("dim", -1))


def plain(tensor: Tensor) -> Tensor:
    """Return the numbers of a sparse or quantised tensor as others hold them."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


@cache
def _about(func: Any) -> tuple[str, bool]:
    """Return the name of an operation and whether it draws at random."""
    return func.overloadpacket.__name__, torch.Tag.nondeterministic_seeded in func.tags
