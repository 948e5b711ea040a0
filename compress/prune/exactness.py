"""Whether a narrowed model computes what the dense one does once the removed units are silenced there.

Both are run on the same inputs. Every operation of the narrowed model must give a tensor of the shape that the graph
foretells, and its elements (some of them, drawn at random) must be those of the dense model at the positions that
stay. So an error shows where it arises, before a small gain or a norm can hide it. Where a norm runs over a width
(layer norm, group norm), the dense model normalises over the positions that stay: that its result changes when units
leave is no error, and the plan says so.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.modes import evaluating, training_flow
from compress.prune import axes
from compress.prune.apply import PassThrough, apply
from compress.prune.axes import Dim
from compress.prune.graph import Graph, inside
from compress.prune.plan import Plan, make_plan
from compress.prune.positions import Positions
from compress.prune.trace import LAYOUT, Step, watched
from compress.tensors import Inputs, call, mapped, tensors_in

SINGLE, DOUBLE = 1e-4, 1e-5  # largest difference in terms of the largest value; what is more is looked at in float64
Silenced = Literal["everything", "learned", "plain"]
SILENCED: tuple[Silenced, ...] = ("everything", "learned", "plain")
_PLAIN = ("weight", "bias", "running_")
_UNINITIALISED = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
_OVER_A_WIDTH = frozenset(("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm"))


# What a model's own code raises on shapes that it did not expect.
OWN_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
)


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


class _Disagreement(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


@dataclass
class Reference:
    """What the silenced dense model computed: for each pass (evaluation, training) its samples and its outputs."""

    positions: Positions
    model: nn.Module
    passes: list[_Pass] = field(default_factory=list)


@dataclass
class _Pass:
    mode: Callable[[nn.Module], contextlib.AbstractContextManager[None]]
    steps: Sequence[Step]
    values: list[list[Tensor | None]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    whole: bool = True  # the dense model did what it did when it was traced
    random: bool = False  # something was drawn at random: values differ, shapes must not


class Exactness:
    """Holds the dense model against narrowed ones.

    Args:
        model: the dense model; it is the same again after every call.
        example_inputs: what the graph was traced with; inputs that are all equal are replaced by normal noise.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs) -> None:
        self.model = model
        self.complete = True  # every operation of every narrowed model so far had its shapes compared
        self.inputs = mapped(example_inputs, _varied)
        self._constant = [name for name, value in _learned(model) if _is_constant(value)]

    def fault(
        self,
        graph: Graph,
        kept: Mapping[str, Tensor],
        dropped: tuple[str, ...] = (),
        *,
        finished: Plan | None = None,
    ) -> Fault | None:
        """Return what is wrong with keeping these units (group name -> units) without these blocks; None: nothing.

        `finished` is the plan, where it is at hand. What differs in single precision is judged in double precision.
        """
        try:
            reference = self.reference(graph, kept, dropped, finished=finished)
        except OWN_ERRORS as error:
            if not dropped:
                raise
            return Fault(0, "", f"without {', '.join(dropped)} it fails: {first_line(error)}")
        found = self.compared(reference, reference.model, SINGLE)
        return self.confirmed(found, graph, kept, dropped, finished=finished) if found is not None else None

    def confirmed(
        self,
        found: Fault,
        graph: Graph,
        kept: Mapping[str, Tensor],
        dropped: tuple[str, ...] = (),
        *,
        finished: Plan | None = None,
    ) -> Fault | None:
        """Return `found` unless it is rounding, which double precision tells, or comes of the silencing itself.

        A table of constants (the knots of a spline), or a row of weights that is divided by its length, makes the
        dense model divide by zero when it is set to zero.
        """
        if not found.values:
            return found
        for silenced in SILENCED[1:]:
            reference = self.reference(graph, kept, dropped, finished=finished, silenced=silenced)
            if self.compared(reference, reference.model) is None:
                return None
        double = Exactness(copy.deepcopy(self.model).double(), mapped(self.inputs, _doubled))
        double._constant = self._constant
        try:
            references = [
                double.reference(graph, kept, dropped, finished=finished, silenced=silenced) for silenced in SILENCED
            ]
        except OWN_ERRORS:  # a model that casts to float32 by itself
            return found
        again = [double.compared(reference, reference.model, DOUBLE) for reference in references]
        return None if None in again else again[0] if again[0] is not None and again[0].values else found

    def reference(
        self,
        graph: Graph,
        kept: Mapping[str, Tensor],
        dropped: tuple[str, ...] = (),
        *,
        finished: Plan | None = None,
        silenced: Silenced = "everything",
    ) -> Reference:
        """Run the dense model with all units but `kept` silenced; the reference comes with the narrowed model.

        `silenced` is what is set to zero: `everything`, parameters and running statistics (`learned`), or of them only
        plain weights and biases and what reads the units (`plain`).
        """
        plan = finished or make_plan(self.model, graph, kept, dropped=dropped)
        positions = Positions(graph, kept)
        with _perturbed(self.model, self._constant):
            result = Reference(positions, apply(plan, self.model))
            with (
                watched(self.model),
                _silenced(self.model, plan, graph, silenced),
                _passed_through(self.model, dropped),
            ):
                for mode, steps in ((evaluating, graph.record.steps), (training_flow, graph.record.training_steps)):
                    if steps or mode is evaluating:
                        left = [step for step in steps if not inside(step.module, dropped)]
                        result.passes.append(_observed(self.model, self.inputs, _Pass(mode, left), positions))
        return result

    def shapes(self, graph: Graph, kept: Mapping[str, Tensor], small: nn.Module) -> Fault | None:
        """Return at which operation a narrowed model fails or gives another shape; values are not compared.

        Shapes count until one depends on values.
        """
        passes = [_Pass(evaluating, tuple(takewhile(_is_static, graph.record.steps)))]
        if graph.record.training_steps:
            passes.append(_Pass(training_flow, tuple(takewhile(_is_static, graph.record.training_steps))))
        return self.compared(Reference(Positions(graph, kept), small, passes), small)

    def compared(self, reference: Reference, small: nn.Module, tolerance: float = SINGLE) -> Fault | None:
        """Run a narrowed model and return the first operation at which it departs from the reference."""
        for one in reference.passes:
            comparing = _Comparing(one, reference.positions, tolerance)
            try:
                with watched(small), one.mode(small), comparing:
                    output = call(small, self.inputs)
                comparing.end(output)
                whole = one.whole and comparing.aligned and comparing.place == len(one.steps)
                self.complete = self.complete and (whole or not one.values)
            except _Disagreement as found:
                return found.fault
            except OWN_ERRORS as error:
                if out_of_memory(error):
                    raise
                return comparing.fault(first_line(error))
        return None


def _is_static(step: Step) -> bool:
    return not step.dynamic


class _Following(TorchDispatchMode):
    """Walks along the recorded steps as a model runs, until it does something else."""

    def __init__(self, one: _Pass, positions: Positions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.one, self.positions = one, positions
        self.place, self.aligned = 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in LAYOUT:
            out = func(*args, **kwargs)
            return out.zero_() if name in _UNINITIALISED else out
        steps, step = self.one.steps, None
        self.aligned = self.aligned and self.place < len(steps) and steps[self.place].name == name
        if self.aligned:
            step = steps[self.place]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.one.random = True
        out = self.run(func, args, kwargs, step)
        if step is not None:
            found = list(tensors_in(out))
            self.seen(step, found[:1] if step.name in _OVER_A_WIDTH else found)  # their statistics are no one's input
            self.place += self.aligned
        return out

    def run(self, func: Any, args: Any, kwargs: Any, step: Step | None) -> Any:
        return func(*args, **kwargs)

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        raise NotImplementedError


def _observed(model: nn.Module, inputs: Inputs, one: _Pass, positions: Positions) -> _Pass:
    """Run the silenced dense model once and keep its samples."""
    observing = _Observing(one, positions)
    with one.mode(model), observing:
        output = call(model, inputs)
    one.outputs = [tensor.detach().clone() for tensor in tensors_in(output)]
    one.whole = observing.aligned and observing.place == len(one.steps)
    one.steps = one.steps[: observing.place]
    return one


class _Observing(_Following):
    def run(self, func: Any, args: Any, kwargs: Any, step: Step | None) -> Any:
        if step is not None and self._over_a_width(step):
            return self._over_what_stays(func, args, kwargs, step)
        return func(*args, **kwargs)

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        values: list[Tensor | None] = []
        if any(tuple(tensor.shape) != _dense_shape(dims) for tensor, dims in zip(outputs, step.outputs, strict=False)):
            self.aligned = False  # shapes that depend on values: silencing units has changed them
            return
        for tensor, dims in zip(outputs, step.outputs, strict=False):
            sample = self.positions.sample(dims)
            values.append(None if sample is None else _at(tensor, sample.dense))
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


_COUNTING = frozenset((
    "mean", "var", "std", "var_mean", "std_mean", "native_batch_norm", "_native_batch_norm_legit",
    "_batch_norm_with_update", "cudnn_batch_norm", "batch_norm",
))  # fmt: skip


def _dense_shape(dims: Sequence[Dim]) -> tuple[int, ...]:
    return tuple(axes.dim_size(dim) for dim in dims)


class _Comparing(_Following):
    def __init__(self, one: _Pass, positions: Positions, tolerance: float) -> None:
        super().__init__(one, positions)
        self.tolerance = tolerance

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        values = self.one.values[self.place] if self.one.values else [None] * len(outputs)
        for tensor, dims, expected in zip(outputs, step.outputs, values, strict=False):
            shape = self.positions.shape(dims)
            if tuple(tensor.shape) != shape:
                self._disagree(f"{step.name} gives the shape {tuple(tensor.shape)} in place of {shape}")
            sample = self.positions.sample(dims)
            if expected is None or sample is None or self.one.random:
                continue
            if (error := _difference(_at(tensor, sample.narrow), expected)) > self.tolerance:
                self._disagree(f"{step.name} gives other values, off by {error:.1e}", values=True)

    def end(self, output: Any) -> None:
        """Compare what the model gives in the end."""
        found = list(tensors_in(output))
        if not self.one.values:
            return
        if [each.shape for each in found] != [each.shape for each in self.one.outputs]:
            self._disagree("the output has another shape")
        for tensor, expected in zip(found, self.one.outputs, strict=True):
            if not self.one.random and (error := _difference(tensor, expected)) > self.tolerance:
                self._disagree(f"the output is off by {error:.1e}", values=True)

    def fault(self, reason: str, *, values: bool = False) -> Fault:
        """Return a fault at the present step."""
        steps = self.one.steps[self.place : self.place + 1]
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
        return Fault(self.place, steps[0].module if steps else "", reason, tuple(dict.fromkeys(seen)), values)

    def _disagree(self, reason: str, *, values: bool = False) -> None:
        raise _Disagreement(self.fault(reason, values=values))


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on the CPU (where torch has no class for it) or a GPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of its text, cut to 120 characters."""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:120] if text else type(error).__name__


def _at(tensor: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    if not indices:
        return tensor.detach().clone()
    return tensor.detach()[tuple(index.to(tensor.device) for index in indices)]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference in terms of the largest value; infinite where one is NaN and the other not."""
    if found.numel() == 0:
        return 0.0
    if found.is_complex():
        found, expected = torch.view_as_real(found), torch.view_as_real(expected)
    found, expected = found.double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (found - expected).abs())
    scale = torch.where(expected.isfinite(), expected, 0.0).abs().max().clamp(min=1e-6)
    return float((difference.max() / scale).nan_to_num(nan=torch.inf))


def _varied(tensor: Tensor) -> Tensor:
    """Return an input as it is; normal noise in place of one whose values are all equal and would hide mistakes."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
        return tensor.detach()
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=tensor.device, dtype=tensor.dtype)


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _learned(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and running statistics."""
    statistics = [(name, value) for name, value in model.named_buffers() if "running_" in name.rpartition(".")[2]]
    return [*model.named_parameters(), *statistics]


def _is_constant(value: Tensor) -> bool:
    if not value.is_floating_point() or value.numel() < 2:
        return False
    first = value[(0,) * value.dim()]
    return bool(first == value[(-1,) * value.dim()]) and bool((value == first).all())


@contextlib.contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.data.copy_(value)


@contextlib.contextmanager
def _perturbed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let tensors that are all of one value vary: a mistake in which of equal values stay would not show."""
    learned = dict(_learned(model))
    tensors = [learned[name] for name in names]
    generator = torch.Generator().manual_seed(0)
    with _restored(tensors):
        for tensor in tensors:
            noise = torch.rand(tensor.shape, generator=generator).to(device=tensor.device, dtype=tensor.dtype)
            first = tensor.flatten()[0].item()
            tensor.data.copy_(first * (1 + 0.2 * noise) if first else 0.2 * noise - 0.1)
        yield


@contextlib.contextmanager
def _silenced(model: nn.Module, plan: Plan, graph: Graph, silenced: Silenced) -> Iterator[None]:
    """Set to zero what the plan removes; put it back afterwards."""
    named = {**dict(_learned(model)), **(dict(model.named_buffers()) if silenced == "everything" else {})}
    reads = {(part.tensor, part.dim) for group in graph.groups for part in group.slices if part.role == "in"}

    def goes(name: str, dim: int) -> bool:
        if (name, dim) in reads:
            return True
        return not _is_direction(name, named) and (silenced != "plain" or name.rpartition(".")[2].startswith(_PLAIN))

    removed = [
        (named[name], dim, indices)
        for name, dims in plan.kept.items()
        if name in named
        for dim, indices in dims.items()
        if goes(name, dim)
    ]
    saved = []
    try:
        for tensor, dim, indices in removed:
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone.index_fill_(0, torch.tensor(indices, dtype=torch.long), False)
            places = gone.nonzero().flatten().to(tensor.device)
            saved.append((tensor.data, dim, places, tensor.data.index_select(dim, places)))
            tensor.data.index_fill_(dim, places, 0)
        yield
    finally:
        for data, dim, places, values in reversed(saved):
            data.index_copy_(dim, places, values)


def _is_direction(name: str, named: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is the direction in a weight norm: its length is divided out, the gain silences it."""
    for own, gain in (("parametrizations.weight.original1", "original0"), ("weight_v", "weight_g")):
        if name.endswith(own):
            owner = name.removesuffix(own.rpartition(".")[2])
            return f"{owner}{gain}" in named
    return False


@contextlib.contextmanager
def _passed_through(model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Put the identity in the place of whole blocks."""
    owners = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in blocks]
    saved = [getattr(owner, leaf) for owner, leaf in owners]
    try:
        for owner, leaf in owners:
            setattr(owner, leaf, PassThrough())
        yield
    finally:
        for (owner, leaf), module in zip(owners, saved, strict=True):
            setattr(owner, leaf, module)
