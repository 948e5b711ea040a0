"""The run of the silenced dense model: what each operation gives at the positions that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.core.tensors import Inputs, call, mapped, tensors_in
from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.kept_positions import Positions
from compress.graph.lockstep import OVER_A_WIDTH, Draw, Following, Pass, plain
from compress.graph.silenced_products import Products
from compress.graph.trace import Step
from compress.graph.watch import watched

_MEANS = frozenset(("mean", "nanmean", "var", "std", "var_mean", "std_mean"))
_BATCH_NORMS = frozenset((
    "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm", "batch_norm",
))  # fmt: skip


def observed(model: nn.Module, inputs: Inputs, one: Pass, positions: Positions, products: Products) -> Pass:
    """Run the silenced dense model once and keep its samples."""
    observing = _Observing(one, positions, products)
    with watched(model, positions.graph.caches), one.mode(model), observing:
        output = call(model, inputs)
    one.outputs = [plain(tensor.detach()).clone() for tensor in tensors_in(output)]
    one.whole = observing.aligned and observing.place == len(one.steps)
    one.steps = one.steps[: observing.place]
    return one


class _Observing(Following):
    def __init__(self, one: Pass, positions: Positions, products: Products) -> None:
        super().__init__(one, positions)
        self.products = products

    def drawn(self, step: Step | None, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        """Keep what is drawn, at a step as much of it as stays."""
        shapes = [tuple(each.shape) for each in outputs]
        if step is None or shapes != [_dense_shape(dims) for dims in step.outputs]:
            self.one.draws.append(Draw(name, None, given, [each.clone() for each in outputs]))
            return
        taken = [self._taken(out, dims) for out, dims in zip(outputs, step.outputs, strict=True)]
        told = [each for each in taken if each is not None]
        self.one.draws.append(Draw(name, self.place, [], told if len(told) == len(taken) else None))

    def ranked(self, step: Step | None, values: Tensor, dim: int, outputs: list[Tensor]) -> None:
        """Keep the places."""
        places = outputs[1]
        fits = step is not None and len(step.outputs[1]) == places.dim()
        self.one.ranks.append(self._taken(places, step.outputs[1]) if step is not None and fits else places.clone())

    def suppressed(self, boxes: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
        """Keep what is left."""
        self.one.kept.append((boxes.clone(), scores.clone(), kept.clone()))
        return kept

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
            values.append(None if sample is None else plain(tensor).take(sample.dense.to(tensor.device)))
        self.one.values.append(values)

    def _over_a_width(self, step: Step) -> bool:
        narrowed = [dims for dims in step.inputs if self.positions.narrowed(dims)]
        if step.name in OVER_A_WIDTH or step.name in _MEANS:  # a mean of a width that may go normalises, or is unused
            return bool(narrowed)
        marked = (axis for dims in narrowed for dim in dims for segment in dim for axis in segment)
        return step.name in _BATCH_NORMS and any("normalised" in axis.marks for axis in marked)

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
            if step.name in OVER_A_WIDTH and tensor is not first:
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
