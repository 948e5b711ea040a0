"""Whether a narrowed model computes what the dense one does once the removed units are silenced there.

Both are run on the same inputs. Every operation of the narrowed model must give a tensor of the shape that the graph
foretells, and its elements (some of them, drawn at random) must be those of the dense model at the positions that
stay. So an error shows where it arises, before a small gain or a norm can hide it. Where a norm runs over a width
(layer norm, group norm), the dense model normalises over the positions that stay: that its result changes when units
leave is no error, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import Tensor, nn

from compress.core.copies import copied
from compress.core.modes import evaluating, training_code
from compress.core.tensors import Inputs, call, doubled, mapped
from compress.graph.apply import apply
from compress.graph.dense_run import observed
from compress.graph.graph import Graph, inside
from compress.graph.kept_positions import Positions
from compress.graph.lockstep import Pass
from compress.graph.narrow_run import Comparing, Disagreement, Fault
from compress.graph.plan import Plan, make_plan
from compress.graph.silence import SILENCED, Silenced, is_constant, learned, passed_through, perturbed, silenced_in
from compress.graph.trace import Step
from compress.graph.watch import watched

__all__ = ["Exactness", "Fault", "Reference"]

SINGLE, DOUBLE = 1e-4, 1e-5  # largest difference in terms of the largest value; what is more is looked at in float64

# What a model's own code raises on shapes that it did not expect.
OWN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


@dataclass
class Reference:
    """What the silenced dense model computed: for each pass (evaluation, training) its samples and its outputs."""

    positions: Positions
    model: nn.Module
    passes: list[Pass] = field(default_factory=list)


class Exactness:
    """Holds the dense model against narrowed ones.

    Args:
        model: the dense model; it is the same again after every call.
        example_inputs: what the graph was traced with; an input that is all equal is replaced by normal noise,
            unless it is a vector beside others, such as a mask of ones or a scale.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs) -> None:
        self.model = model
        self.complete = True  # every operation of every narrowed model so far had its shapes compared
        alone = isinstance(example_inputs, Tensor)
        self.inputs = mapped(example_inputs, lambda each: _varied(each) if alone or each.ndim > 2 else each.detach())
        self._learned = learned(model)
        self._parameters = [name for name, _ in model.named_parameters()]
        self._constant = [name for name, value in self._learned.items() if is_constant(value)]

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
        double = Exactness(copied(self.model).double(), doubled(self.inputs))
        double._constant = self._constant
        everything, others = SILENCED[:1], SILENCED[1:]
        for exact, tolerance, ways in ((double, DOUBLE, everything), (self, SINGLE, others), (double, DOUBLE, others)):
            for silenced in ways:
                try:
                    reference = exact.reference(graph, kept, dropped, finished=finished, silenced=silenced)
                except OWN_ERRORS:
                    if exact is self:
                        raise
                    break  # a model that casts to float32 by itself
                again = exact.compared(reference, reference.model, tolerance)
                if again is None:
                    return None
                if ways == everything and again.values:
                    found = again
        return found

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
        with perturbed([self._learned[name] for name in self._constant]):
            result = Reference(positions, self.narrowed(plan))
            silent = silenced_in(self.model, plan, graph, silenced)
            with silent as products, passed_through(self.model, dropped):
                for mode, steps in ((evaluating, graph.record.steps), (training_code, graph.record.training_steps)):
                    if steps or mode is evaluating:
                        left = [step for step in steps if not inside(step.module, dropped)]
                        result.passes.append(observed(self.model, self.inputs, Pass(mode, left), positions, products))
        return result

    def narrowed(self, plan: Plan) -> nn.Module:
        """Return the narrowed model to look at, which has in common with the dense one what stays whole."""
        return apply(plan, self.model, [name for name in self._parameters if name not in self._constant])

    def shapes(self, graph: Graph, kept: Mapping[str, Tensor], small: nn.Module) -> Fault | None:
        """Return at which operation a narrowed model fails or gives another shape; values are not compared.

        Shapes count until one depends on values.
        """
        passes = [Pass(evaluating, tuple(takewhile(_is_static, graph.record.steps)))]
        if graph.record.training_steps:
            passes.append(Pass(training_code, tuple(takewhile(_is_static, graph.record.training_steps))))
        return self.compared(Reference(Positions(graph, kept), small, passes), small)

    def compared(self, reference: Reference, small: nn.Module, tolerance: float = SINGLE) -> Fault | None:
        """Run a narrowed model and return the first operation at which it departs from the reference."""
        before = 0
        for one in reference.passes:
            comparing = Comparing(one, reference.positions, tolerance)
            try:
                with watched(small), one.mode(small), comparing:
                    output = call(small, self.inputs)
                comparing.end(output)
                whole = one.whole and comparing.aligned and comparing.place == len(one.steps)
                self.complete = self.complete and (whole or not one.values)
            except Disagreement as found:
                return replace(found.fault, step=before + found.fault.step)
            except OWN_ERRORS as error:
                if out_of_memory(error):
                    raise
                fault = comparing.earlier() or comparing.fault(first_line(error))
                return replace(fault, step=before + fault.step)
            before += len(one.steps)
        return None


def _is_static(step: Step) -> bool:
    return not step.dynamic


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on the CPU (where torch has no class for it) or a GPU."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of its text, cut to 120 characters."""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:120] if text else type(error).__name__


def _varied(tensor: Tensor) -> Tensor:
    """Return an input as it is; normal noise in place of one whose values are all equal and would hide mistakes."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
        return tensor.detach()
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=tensor.device, dtype=tensor.dtype)
