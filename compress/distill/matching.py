"""Which layers of two models belong together, and what they give in one form: vectors at positions of one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.layers import layers_named
from compress.distill.losses import Guide, Sides
from evaluators.datasets.batch import tensors_in

_OF_MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


@dataclass(frozen=True)
class Layout:
    """How what a layer gives for one sample is laid out.

    Attributes:
        layer: its name, and whose it is, in words.
        shape: of the tensor for one sample.
        axis: of the channels, counted with that of the samples.
        prefix: leading tokens without a place in the image, such as the class token.
        grid: rows and columns of the other positions, (1, 1) for a vector; None for a sequence.
    """

    layer: str
    shape: tuple[int, ...]
    axis: int
    prefix: int
    grid: tuple[int, int] | None

    @property
    def width(self) -> int:
        """Channels of a position."""
        return self.shape[self.axis - 1]

    def tokens(self, given: Any) -> Tensor:
        """Return what the layer gave as float32 (N, positions, channels), leading tokens first."""
        tensor = tensor_of(given, self.layer)
        if tuple(tensor.shape[1:]) != self.shape:
            raise InputError(f"{self.layer} gave {self.shape} for a sample, and now {tuple(tensor.shape[1:])}")
        moved = tensor.movedim(self.axis, -1)
        return moved.reshape(len(moved), -1, self.width).float()

    def like(self, given: Any, size: tuple[int, int] | None) -> Tensor:
        """Return `tokens`; with a `size`, those with a place in the image alone, averaged to so many rows and columns.

        Raises:
            InputError: the layer gave no such positions.
        """
        found = self.tokens(given)
        if size is None or self.grid is None:
            return found
        places = found[:, self.prefix :]
        if size == self.grid:
            return places
        picture = places.transpose(1, 2).unflatten(2, self.grid)
        return F.adaptive_avg_pool2d(picture, size).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Pair:
    """A layer of the student and one of a teacher whose outputs are compared."""

    student: str
    teacher: str
    layouts: tuple[Layout, Layout]
    size: tuple[int, int] | None

    @classmethod
    def of(cls, key: str, student: str, teacher: str, layouts: tuple[Layout, Layout]) -> Pair:
        """Return the pair; both sides are compared on the smaller grid, or token by token where they have the same.

        Raises:
            InputError: their positions cannot be matched; names both shapes.
        """
        one, other = layouts
        if one.grid is not None and other.grid is not None:
            whole = one.grid == other.grid and one.prefix == other.prefix
            rows, columns = (min(sides) for sides in zip(one.grid, other.grid, strict=True))
            return cls(student, teacher, layouts, None if whole else (rows, columns))
        if one.grid is other.grid and one.shape[0] == other.shape[0]:
            return cls(student, teacher, layouts, None)
        raise InputError(
            f"{key}: {one.layer} gives {one.shape} for a sample and {other.layer} {other.shape}, whose positions "
            "cannot be matched"
        )

    def both(self, student: Any, teacher: Any) -> tuple[Tensor, Tensor]:
        """Return what the two layers gave as (N, positions, channels of each), float32."""
        one, other = self.layouts
        return one.like(student, self.size), other.like(teacher, self.size)


def tensor_of(given: Any, layer: str) -> Tensor:
    """Return the first tensor that a layer gave; InputError where there is none."""
    found = next(tensors_in(given), None)
    if found is None:
        raise InputError(f"{layer} gives no tensor")
    return found


def spread(count: int, over: int) -> list[int]:
    """Return for each of `count` places in a row the one of `over` places that lies as far along; of one, the last."""
    return [over - 1] if count == 1 else [round(place * (over - 1) / (count - 1)) for place in range(count)]


def pairs_of(sides: Sides, guide: Guide, layers: Mapping[str, str], key: str) -> list[Pair]:
    """Return what is compared with what: the layers of every glob of the student with those of the teacher's glob.

    Where the teacher's glob finds more or fewer, each layer of the student gets the one that lies as far along.

    Raises:
        InputError: a glob matches nothing, or what two layers give cannot be matched; `key` is the recipe's.
    """
    assert guide.model is not None
    named: list[tuple[str, str]] = []
    for ours, theirs in layers.items():
        student = layers_named(sides.student, [ours], key, "the model")
        teacher = layers_named(guide.model, [theirs], key, f"teacher {guide.name}")
        named += [(one, teacher[at]) for one, at in zip(student, spread(len(student), len(teacher)), strict=True)]
    found = (
        layouts(sides, sides.student, [one for one, _ in named], "the model"),
        layouts(sides, guide.model, [other for _, other in named], f"teacher {guide.name}"),
    )
    return [Pair.of(key, one, other, (found[0][one], found[1][other])) for one, other in named]


def layouts(sides: Sides, model: nn.Module, layers: Sequence[str], whose: str) -> dict[str, Layout]:
    """Return how the outputs of layers are laid out, by their names.

    Raises:
        InputError: one gives no tensor, or not one with a row for each sample.
    """
    size = sides.task.input_size
    seen = sides.look(model, layers).features
    found = {}
    for name, given in seen.items():
        title = f"layer {name} of {whose}"
        tensor = tensor_of(given, title)
        shape = tuple(tensor.shape[1:])
        if len(tensor) != 2 or not 1 <= len(shape) <= 3:
            what = f"{title} gives {tuple(tensor.shape)} for two samples, which is no vector, tokens or map"
            raise InputError(f"{what}; name layers by a narrower pattern")
        found[name] = _layout(title, shape, model, name, size)
    return found


def leading(model: nn.Module, tokens: int, size: tuple[int, ...]) -> tuple[int, tuple[int, int] | None]:
    """Return how many of `tokens` have no place in the image, and rows and columns of the others; None: a sequence.

    Args:
        model: may say how many lead, as timm's do.
        tokens: of a layer of it.
        size: of the model's inputs.
    """
    said = getattr(model, "num_prefix_tokens", None)
    told = [said] if isinstance(said, int) else []
    likely = [prefix for prefix in (0, 1, 2) if prefix == 0 or tokens - prefix >= 4]
    grids = [(prefix, _grid(tokens - prefix, _aspect(size))) for prefix in [*told, *likely]]
    return next((each for each in grids if each[1] is not None), (0, None))


def _layout(title: str, shape: tuple[int, ...], model: nn.Module, name: str, size: tuple[int, ...]) -> Layout:
    """Return the layout of `shape`, which the layer `name` of a model gives for a sample of `size`."""
    if len(shape) == 1:
        return Layout(title, shape, 1, 0, (1, 1))
    last = _channels_last(shape, model.get_submodule(name), _aspect(size))
    if len(shape) == 3:
        return Layout(title, shape, 3 if last else 1, 0, (shape[0], shape[1]) if last else (shape[1], shape[2]))
    axis = 2 if last else 1
    return Layout(title, shape, axis, *leading(model, shape[2 - axis], size))


def _aspect(size: tuple[int, ...]) -> tuple[int, int] | None:
    """Return height and width of images; None where the inputs are none."""
    return (size[1], size[2]) if len(size) == 3 and all(size) else None


def _channels_last(shape: tuple[int, ...], module: nn.Module, aspect: tuple[int, int] | None) -> bool:
    """Return whether the channels come last: a map has the sides of an image, the rest is told from the layers."""
    if len(shape) == 3 and aspect is not None:
        first, last = ((a * aspect[1] == b * aspect[0]) for a, b in (shape[1:], shape[:2]))
        if first != last:
            return last
    kinds = list(module.modules())
    if any(isinstance(kind, _OF_MAPS) for kind in kinds):
        return False
    # timm's LayerNorm2d and the like norm maps
    named = [kind for kind in kinds if isinstance(kind, nn.Linear | nn.LayerNorm)]
    return len(shape) == 2 or any(not type(kind).__name__.endswith("2d") for kind in named)


def _grid(count: int, aspect: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return rows and columns of `count` patches of an image of sides `aspect`, or else of a square one."""
    if aspect is None or count < 1:
        return None
    for height, width in (aspect, (1, 1)):
        rows = isqrt(count * height // width)
        if rows and count % rows == 0 and rows * width == count // rows * height:
            return rows, count // rows
    return None
