"""Parts of a model that the example does not reach, beside ones of their kind that it does: experts, heads of tasks.

What routes samples may send others there, so such a part has to fit what feeds it once that is narrowed. Where all
parts of its kind in the same list agree in what a dimension is (the stream they read and add to), it is that of the
idle part as well; what each has for itself (hidden units) stays whole there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from compress.graph import axes
from compress.graph.axes import Axis
from compress.graph.trace import Dims


def join_siblings(model: nn.Module, tensors: Mapping[str, Dims], unused: Collection[str]) -> set[tuple[str, int]]:
    """Join dimensions of tensors that no operation used to those of their like; return these (tensor, dimension)."""
    joined: set[tuple[str, int]] = set()
    idle = set(unused)
    for name, group in model.named_modules():
        if isinstance(group, (nn.ModuleList, nn.ModuleDict)):
            around = f"{name}." if name else ""
            parts = {child: _under(f"{around}{child}.", tensors) for child, _ in group.named_children()}
            known = {child: [f"{around}{child}.{leaf}" in idle for leaf in part] for child, part in parts.items()}
            reached = [child for child in parts if not any(known[child])]
            for child, module in group.named_children():
                if reached and any(known[child]):
                    kind = type(module), _sizes(parts[child])
                    like = [parts[o] for o in reached if (type(group.get_submodule(o)), _sizes(parts[o])) == kind]
                    found = _joined(parts[child], like, _axes_outside(around, tensors))
                    joined |= {(f"{around}{child}.{leaf}", place) for leaf, place in found}
    return joined


def _under(prefix: str, tensors: Mapping[str, Dims]) -> dict[str, Dims]:
    return {name.removeprefix(prefix): dims for name, dims in tensors.items() if name.startswith(prefix)}


def _sizes(part: Mapping[str, Dims]) -> dict[str, list[int]]:
    return {leaf: [axes.dim_size(dim) for dim in dims] for leaf, dims in part.items()}


def _axes_outside(prefix: str, tensors: Mapping[str, Dims]) -> set[Axis]:
    others = (dims for name, dims in tensors.items() if not name.startswith(prefix))
    return {axis for dims in others for dim in dims for axis in axes.axes_of(dim)}


def _joined(part: Mapping[str, Dims], like: list[dict[str, Dims]], outside: set[Axis]) -> list[tuple[str, int]]:
    """Join a part to those like it where they agree; of a single one, in what others see as well."""
    found = []
    for leaf, dims in part.items():
        for place, dim in enumerate(dims):
            theirs = {axes.expand(other[leaf][place]) for other in like}
            if len(theirs) == 1 and (len(like) > 1 or outside.issuperset(axes.axes_of(next(iter(theirs))))):
                axes.unify(next(iter(theirs)), dim)
                found.append((leaf, place))
    return found
