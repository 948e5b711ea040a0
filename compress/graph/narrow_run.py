"""The run of a narrowed model, held against what the dense one gave: the first operation that departs is its fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.core.tensors import tensors_in
from compress.graph.kept_positions import Positions
from compress.graph.lockstep import Draw, Following, Pass, plain
from compress.graph.trace import Step


@dataclass(frozen=True)
class Fault:
    """Why a narrowed model is wrong.

    `step` counts the operations that agreed before; `module` is where the next one did not; `groups` are the widths
    that this operation sees; `values` is true where it runs but computes something else; `scaled` where that is right
    but for one factor, as of a scale that the model takes from a width.
    """

    step: int
    module: str
    reason: str
    groups: tuple[str, ...] = ()
    values: bool = False
    scaled: bool = False

    @property
    def later(self) -> tuple[bool, int]:
        """How far the model got: values are looked at once all shapes are right."""
        return self.values, self.step

    def __str__(self) -> str:
        """Return the reason as part of a sentence."""
        what = "the result would not be the same" if self.values else "the forward pass fails"
        return f"{what} ({self.reason}; layer {self.module or '(top)'!r})"


class Disagreement(Exception):
    """Ends the run of a narrowed model at the operation where it departs."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class Comparing(Following):
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

    def drawn(self, step: Step | None, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        """Put what the dense model drew in the place of what this one did; where that cannot be, nothing is proven."""
        told = step is not None and any(
            tuple(each.shape) != self.positions.shape(dims) for each, dims in zip(outputs, step.outputs, strict=True)
        )
        if told or not self.one.values:  # of a wrong shape `seen` tells
            return
        theirs = self.one.draws[self.draws] if self.draws < len(self.one.draws) else None
        if theirs is None or theirs.name != name or not self._drawn_alike(step, theirs, given, outputs):
            self._disagree(f"{name} draws other numbers at random, and nothing behind it can be compared", values=True)
        else:
            for tensor, value in zip(outputs, theirs.outputs or (), strict=True):
                tensor.copy_(value)

    def _drawn_alike(self, step: Step | None, theirs: Draw, given: list[Tensor], outputs: list[Tensor]) -> bool:
        """Return whether the dense model drew as much from the same; at a step, what it drew from was compared."""
        if theirs.outputs is None or [each.shape for each in theirs.outputs] != [each.shape for each in outputs]:
            return False
        if step is not None and theirs.place is not None:
            return self.place == theirs.place
        return self._same(given, theirs.given)

    def ranked(self, step: Step | None, values: Tensor, dim: int, outputs: list[Tensor]) -> None:
        """Take the order of the dense model, where it is as good as this one's."""
        expected = self.one.ranks[self.rankings] if self.rankings < len(self.one.ranks) else None
        sorted_, places = outputs
        if expected is None or places.shape != expected.shape or not values.dim() or torch.equal(places, expected):
            return
        if places.numel() and int(expected.max()) < values.shape[dim]:
            theirs = values.gather(dim, expected)
            if float(_differences(theirs.reshape(1, -1), sorted_.reshape(1, -1))) <= self.tolerance:
                sorted_.copy_(theirs)
                places.copy_(expected)

    def suppressed(self, boxes: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
        """Leave the boxes that the dense model did, where it was given the same, up to rounding."""
        if self.suppressions >= len(self.one.kept) or not len(scores):
            return kept
        their_boxes, their_scores, theirs = self.one.kept[self.suppressions]
        return theirs.clone() if self._same([boxes, scores], [their_boxes, their_scores]) else kept

    def _same(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Return whether tensors are of the same shapes and, up to rounding, the same values."""
        return [each.shape for each in found] == [each.shape for each in expected] and not any(
            float(_differences(ours.reshape(1, -1), theirs.reshape(1, -1))) > self.tolerance
            for ours, theirs in zip(found, expected, strict=True)
            if ours.numel()
        )

    def seen(self, step: Step, outputs: list[Tensor]) -> None:
        """Compare shapes, and samples where the pass holds some."""
        values = self.one.values[self.place] if self.one.values else [None] * len(outputs)
        for tensor, dims, expected in zip(outputs, step.outputs, values, strict=False):
            shape = self.positions.shape(dims)
            if tuple(tensor.shape) != shape:
                self._disagree(f"{step.name} gives the shape {tuple(tensor.shape)} in place of {shape}")
            sample = self.positions.sample(dims)
            if expected is not None and sample is not None:
                self.pairs.append((self.place, plain(tensor).take(sample.narrow.to(tensor.device)), expected))

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
        for place, (step, found, expected) in enumerate(pairs):
            if (error := errors[place]) > self.tolerance:
                reason = f"{self.one.steps[step].name} gives other values, off by {error:.1e}"
                if scaled := _one_factor(found, expected, self.tolerance):
                    reason += ": all by one factor, as by a scale that follows the width"
                self._disagree(reason, step, values=True, scaled=scaled)

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
        found = [plain(each) for each in tensors_in(output)]
        if not self.one.values:
            return
        if [each.shape for each in found] != [each.shape for each in self.one.outputs]:
            self._disagree("the output has another shape")
        for tensor, expected in zip(found, self.one.outputs, strict=True):
            if not tensor.numel():
                continue
            if (error := float(_differences(tensor.reshape(1, -1), expected.reshape(1, -1)))) > self.tolerance:
                self._disagree(f"the output is off by {error:.1e}", values=True)

    def fault(self, reason: str, place: int | None = None, *, values: bool = False, scaled: bool = False) -> Fault:
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
        return Fault(place, steps[0].module if steps else "", reason, tuple(dict.fromkeys(seen)), values, scaled)

    def _disagree(self, reason: str, place: int | None = None, *, values: bool = False, scaled: bool = False) -> None:
        self.judge()
        raise Disagreement(self.fault(reason, place, values=values, scaled=scaled))


def _one_factor(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return whether values that differ are multiples of those expected by one factor."""
    if not (found.is_floating_point() and expected.isfinite().all() and found.isfinite().all()):
        return False
    found, expected = found.double(), expected.double()
    largest = expected.abs().argmax()
    if len(expected.unique()) < 3 or not expected[largest]:
        return False  # of so few values anything is a multiple
    factor = found[largest] / expected[largest]
    return bool(factor) and float(_differences(found[None], (factor * expected)[None])) <= tolerance


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
