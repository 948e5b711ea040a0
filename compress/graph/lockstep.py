"""Two runs in step: what the dense model computes, operation by operation, and a narrowed model held against it.

The steps are those of the trace (`compress.graph.graph.Record`). Where a model does something else than it did then
(its shapes or its path depend on values), what follows is compared by its outputs alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.core.tensors import Inputs, call, mapped, tensors_in
from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.positions import Positions
from compress.graph.products import Products
from compress.graph.trace import LAYOUT, Step

_UNINITIALISED = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
_OVER_A_WIDTH = frozenset(("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm"))
_COUNTING = frozenset((
    "mean", "var", "std", "var_mean", "std_mean", "native_batch_norm", "_native_batch_norm_legit",
    "_batch_norm_with_update", "cudnn_batch_norm", "batch_norm",
))  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Why a narrowed model is wrong.

    `step` counts the operations that agreed before; `module` is where the next one did not; `groups` are the widths
    that this operation sees; `values` is true where it runs but computes something else.
    """

    step: int
    module: str
    reason: str
    groups: tuple[str, ...] = ()
    values: bool = False

    def __str__(self) -> str:
        """Return the reason as part of a sentence."""
        what = "the result would not be the same" if self.values else "the forward pass fails"
        return f"{what} ({self.reason}; layer {self.module or '(top)'!r})"


class Disagreement(Exception):
    """Ends the run of a narrowed model at the operation where it departs."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


@dataclass
class Pass:
    """One forward pass: its mode, its steps, and what the dense model computed in it."""

    mode: Callable[[nn.Module], contextlib.AbstractContextManager[None]]
    steps: Sequence[Step]
    values: list[list[Tensor | None]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    whole: bool = True  # the dense model did what it did when it was traced
    draws: dict[int, list[Tensor]] = field(default_factory=dict)  # by step: what was drawn at random, narrowed
    random: bool = False  # something was drawn that cannot be drawn again: values differ, shapes must not


class _Following(TorchDispatchMode):
    """Walks along the recorded steps as a model runs, until it does something else."""

    def __init__(self, one: Pass, positions: Positions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.one, self.positions = one, positions
        self.place, self.aligned = 0, True

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
        out = self.run(func, args, kwargs, step)
        found = [out] if isinstance(out, Tensor) else list(tensors_in(out))
        if draws and not self.drawn(step, found):
            self.one.random = True
        if step is not None:
            self.seen(step, found[:1] if step.name in _OVER_A_WIDTH else found)  # their statistics are no one's input
            self.place += self.aligned
        return out

    def left(self) -> None:
        """From here on the model does something else than it did when it was traced."""
        self.aligned = False

    def run(self, func: Any, args: Any, kwargs: Any, step: Step | None) -> Any:
        return func(*args, **kwargs)

    def drawn(self, step: Step | None, outputs: list[Tensor]) -> bool:
        """Let both models draw the same; return whether that is so."""
        raise NotImplementedError

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        raise NotImplementedError


@cache
def _about(func: Any) -> tuple[str, bool]:
    """Return the name of an operation and whether it draws at random."""
    return func.overloadpacket.__name__, torch.Tag.nondeterministic_seeded in func.tags


def observed(model: nn.Module, inputs: Inputs, one: Pass, positions: Positions, products: Products) -> Pass:
    """Run the silenced dense model once and keep its samples."""
    observing = _Observing(one, positions, products)
    with one.mode(model), observing:
        output = call(model, inputs)
    one.outputs = [tensor.detach().clone() for tensor in tensors_in(output)]
    one.whole = observing.aligned and observing.place == len(one.steps)
    one.steps = one.steps[: observing.place]
    return one


class _Observing(_Following):
    def __init__(self, one: Pass, positions: Positions, products: Products) -> None:
        super().__init__(one, positions)
        self.products = products

    def drawn(self, step: Step | None, outputs: list[Tensor]) -> bool:
        if step is None or any(len(dims) != out.dim() for out, dims in zip(outputs, step.outputs, strict=True)):
            return False
        taken = [self._taken(out, dims) for out, dims in zip(outputs, step.outputs, strict=True)]
        self.one.draws[self.place] = [each for each in taken if each is not None]
        return len(self.one.draws[self.place]) == len(taken)

    def _taken(self, tensor: Tensor, dims: tuple[Dim, ...]) -> Tensor | None:
        """Return the positions of a tensor that stay."""
        for place, dim in enumerate(dims):
            index = self.positions.index(dim)
            if index is None or tensor.shape[place] != axes.dim_size(dim):
                return None
            tensor = tensor.index_select(place, index.to(tensor.device))
        return tensor.clone()

    def run(self, func: Any, args: Any, kwargs: Any, step: Step | None) -> Any:
        if step is not None and self._over_a_width(step):
            return self._over_what_stays(func, args, kwargs, step)
        return self.products.run(func, step.name, args, kwargs) if step is not None else func(*args, **kwargs)

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        values: list[Tensor | None] = []
        if any(tuple(tensor.shape) != _dense_shape(dims) for tensor, dims in zip(outputs, step.outputs, strict=False)):
            self.aligned = False  # shapes that depend on values: silencing units has changed them
            return
        for tensor, dims in zip(outputs, step.outputs, strict=False):
            sample = self.positions.sample(dims)
            values.append(None if sample is None else tensor.take(sample.dense.to(tensor.device)))
        self.one.values.append(values)

    def _over_a_width(self, step: Step) -> bool:
        narrowed = [dims for dims in step.inputs if self.positions.narrowed(dims)]
        if step.name in _OVER_A_WIDTH:
            return bool(narrowed)
        marked = (axis for dims in narrowed for dim in dims for segment in dim for axis in segment)
        return step.name in _COUNTING and any("normalised" in axis.marks for axis in marked)

    def _over_what_stays(self, func: Any, args: Any, kwargs: Any, step: Step) -> Any:
        """Run an operation on the positions that stay, and put its results back among zeros."""
        taken = iter(step.inputs)
        wide = {dim: axes_index for dims in (*step.inputs, *step.outputs) for dim in dims
                if (axes_index := self.positions.index(dim)) is not None}  # fmt: skip
        if any(dim not in wide for dims in (*step.inputs, *step.outputs) for dim in dims):
            return func(*args, **kwargs)

        def gathered(tensor: Tensor) -> Tensor:
            for place, dim in enumerate(next(taken)):
                if len(wide[dim]) != tensor.shape[place]:
                    tensor = tensor.index_select(place, wide[dim].to(tensor.device))
            return tensor

        narrow = list(mapped(list(args), gathered))
        options = mapped(kwargs, gathered)
        if step.name in ("native_layer_norm", "_fused_rms_norm", "rms_norm"):
            narrow[1] = list(narrow[0].shape[-len(narrow[1]) :])
        elif step.name == "native_group_norm":
            channels, groups = args[0].shape[1], args[6]
            stay = wide[step.inputs[0][1]] // (channels // groups)
            narrow[4], narrow[6] = narrow[0].shape[1], len(stay.unique())
        given = iter(step.outputs)

        def spread(tensor: Tensor) -> Tensor:
            if step.name in _OVER_A_WIDTH and tensor is not first:
                return tensor
            for place, dim in enumerate(next(given)):
                size = axes.dim_size(dim)
                if size != tensor.shape[place]:
                    shape = (*tensor.shape[:place], size, *tensor.shape[place + 1 :])
                    tensor = tensor.new_zeros(shape).index_copy_(place, wide[dim].to(tensor.device), tensor)
            return tensor

        out = func(*narrow, **options)
        first = next(tensors_in(out))
        return mapped(out, spread)


def _dense_shape(dims: Sequence[Dim]) -> tuple[int, ...]:
    return tuple(axes.dim_size(dim) for dim in dims)


class Comparing(_Following):
    """Holds a narrowed model that runs under it against what a pass holds.

    Shapes are compared as they come, values all at once when the run ends or leaves the recorded steps: what is told
    is the first operation that is wrong all the same.
    """

    def __init__(self, one: Pass, positions: Positions, tolerance: float) -> None:
        super().__init__(one, positions)
        self.tolerance = tolerance
        self.pairs: list[tuple[int, Tensor, Tensor]] = []  # step, found, expected: values yet to be compared

    def left(self) -> None:
        """Compare what there is before values that are wrong lead the model elsewhere."""
        self.judge()
        super().left()

    def drawn(self, step: Step | None, outputs: list[Tensor]) -> bool:
        """Put what the dense model drew in the place of what this one did."""
        draws = [] if step is None else self.one.draws.get(self.place, [])
        if [each.shape for each in draws] != [each.shape for each in outputs]:
            return False
        for tensor, value in zip(outputs, draws, strict=True):
            tensor.copy_(value)
        return True

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        """Compare shapes, and samples where the pass holds some."""
        values = self.one.values[self.place] if self.one.values else [None] * len(outputs)
        for tensor, dims, expected in zip(outputs, step.outputs, values, strict=False):
            shape = self.positions.shape(dims)
            if tuple(tensor.shape) != shape:
                self._disagree(f"{step.name} gives the shape {tuple(tensor.shape)} in place of {shape}")
            sample = self.positions.sample(dims)
            if expected is not None and sample is not None and not self.one.random:
                self.pairs.append((self.place, tensor.take(sample.narrow.to(tensor.device)), expected))

    def judge(self) -> None:
        """Compare the values of the operations so far."""
        pairs, self.pairs = self.pairs, []
        alike: dict[tuple[Any, ...], list[int]] = {}
        for place, (_, found, expected) in enumerate(pairs):
            alike.setdefault((found.dtype, found.device, expected.dtype), []).append(place)
        errors: dict[int, float] = {}
        for places in alike.values():
            found, expected = (torch.stack(rows) for rows in zip(*(pairs[place][1:] for place in places), strict=True))
            errors |= zip(places, _differences(found, expected).tolist(), strict=True)
        for place, (step, _, _) in enumerate(pairs):
            if (error := errors[place]) > self.tolerance:
                name = self.one.steps[step].name
                self._disagree(f"{name} gives other values, off by {error:.1e}", step, values=True)

    def earlier(self) -> Fault | None:
        """Return what was wrong before the present step."""
        try:
            self.judge()
        except Disagreement as found:
            return found.fault
        return None

    def end(self, output: Any) -> None:
        """Compare what the model gives in the end."""
        self.judge()
        found = list(tensors_in(output))
        if not self.one.values:
            return
        if [each.shape for each in found] != [each.shape for each in self.one.outputs]:
            self._disagree("the output has another shape")
        for tensor, expected in zip(found, self.one.outputs, strict=True):
            if self.one.random or not tensor.numel():
                continue
            if (error := float(_differences(tensor.reshape(1, -1), expected.reshape(1, -1)))) > self.tolerance:
                self._disagree(f"the output is off by {error:.1e}", values=True)

    def fault(self, reason: str, place: int | None = None, *, values: bool = False) -> Fault:
        """Return a fault at a step, else at the present one."""
        place = self.place if place is None else place
        steps = self.one.steps[place : place + 1]
        names = self.positions.graph.record.names
        seen = (
            names[axis]
            for step in steps
            for dims in (*step.inputs, *step.outputs)
            for dim in dims
            for segment in dim
            for axis in segment
            if axis in names
        )
        return Fault(place, steps[0].module if steps else "", reason, tuple(dict.fromkeys(seen)), values)

    def _disagree(self, reason: str, place: int | None = None, *, values: bool = False) -> None:
        self.judge()
        raise Disagreement(self.fault(reason, place, values=values))


def _differences(found: Tensor, expected: Tensor) -> Tensor:
    """Return the largest difference of each row in terms of its largest value, for tensors (rows, values > 0).

    It is infinite where one is NaN and the other not.
    """
    if found.is_complex() and expected.is_complex():
        found, expected = torch.view_as_real(found).flatten(1), torch.view_as_real(expected).flatten(1)
    found, expected = found.double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (found - expected).abs()).amax(1)
    scale = torch.where(expected.isfinite(), expected, 0.0).abs().amax(1).clamp(min=1e-6)
    return (difference / scale).nan_to_num(nan=torch.inf)
