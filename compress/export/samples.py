"""What a file is traced with and checked on: inputs of any batch and of any open sizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.core.errors import InputError, is_out_of_memory, reason_of
from compress.core.inputs import BATCH, ModelInputs
from compress.core.tensors import Inputs, call
from compress.export.checks import like, shares_batch
from compress.export.open_sizes import Axes, grown, of_inputs, other_sizes

MOST_TRIED = 2
"""Sizes of one open dimension that files are checked at, beside the given one."""


class Samples(ABC):
    """Inputs of a model, of which a file may leave the batch and other sizes open."""

    example: Inputs
    has_batch: bool
    """Whether there is a batch that a file can leave open."""

    @abstractmethod
    def draw(self, batch: int, seed: int, sizes: Any = None) -> Inputs:
        """Return inputs of `batch` samples and of `sizes`, one of `other_sizes`."""

    @abstractmethod
    def axes(self, batch: bool) -> list[Axes]:
        """Return the open dimensions of every tensor; that of the batch, if there is one, where `batch` asks for it."""

    @abstractmethod
    def other_sizes(self, module: nn.Module) -> Sequence[Any]:
        """Return sizes at which `module`, in evaluation mode, runs as well; none where all of them are fixed.

        Raises:
            InputError: it runs at no other.
        """

    def dims(self, axes: Sequence[Axes]) -> list[dict[int, Any]]:
        """Return `axes` as torch.export takes them: each name is one dimension of its own, of any size."""
        made = {name: torch.export.Dim(name) for each in axes for name in each.values()}
        return [{axis: made[name] for axis, name in each.items()} for each in axes]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a file tells of its inputs, by name, for those who feed it."""
        return {}


@dataclass(frozen=True)
class LikeExample(Samples):
    """Inputs like those that are at hand; height and width of images are open where `any_size` asks for it."""

    example: Inputs
    any_size: bool = False

    @property
    def has_batch(self) -> bool:  # type: ignore[override]
        """Whether all inputs share their first dimension."""
        return shares_batch(self.example)

    def draw(self, batch: int, seed: int, sizes: Any = None) -> Inputs:
        """Return inputs like the example, whose images are by `sizes` (height, width) larger."""
        found = like(self.example, batch, seed)
        return found if sizes is None else grown(found, sizes)

    def axes(self, batch: bool) -> list[Axes]:
        """Return the batch, and height and width of images."""
        return of_inputs(self.example, batch, self.any_size)

    def other_sizes(self, module: nn.Module) -> Sequence[Any]:
        """Return by what images may grow."""
        return other_sizes(module, self.example) if self.any_size else []


@dataclass(frozen=True)
class AsDescribed(Samples):
    """Inputs as the recipe describes them: types, ranges, which of them have a batch, names of open dimensions."""

    inputs: ModelInputs
    example: Inputs
    whole: str = "input"

    @property
    def has_batch(self) -> bool:  # type: ignore[override]
        """Whether any input has a batch."""
        return any(each.batched for each in self.inputs.named().values())

    def draw(self, batch: int, seed: int, sizes: Any = None) -> Inputs:
        """Return drawn inputs; `sizes` maps names of open dimensions to sizes."""
        return self.inputs.draw(batch, seed, sizes)

    def axes(self, batch: bool) -> list[Axes]:
        """Return the batch, and the dimensions that the recipe names."""
        described = self.inputs.named().values()
        return [({0: BATCH} if batch and each.batched else {}) | dict(each.dynamic) for each in described]

    def dims(self, axes: Sequence[Axes]) -> list[dict[int, Any]]:
        """Return `axes` by name, which lets the exporter find out what the sizes hang on (multiples, other sizes)."""
        return [dict(each) for each in axes]

    def other_sizes(self, module: nn.Module) -> Sequence[dict[str, int]]:
        """Return up to two other sizes of each open dimension, and one at which all are larger.

        Tried are one more, half as large again, and twice the size, of each alone and of all together.
        """
        own = self.inputs.open_sizes
        found: list[dict[str, int]] = []
        reasons: dict[str, str] = {}
        together = [{name: grow(size) for name, size in own.items()} for grow in (_half_more, _double)]
        for one in together if len(own) > 1 else []:
            if not self._fault(module, one):
                found.append(one)
                break
        for name, size in own.items():
            tried = dict.fromkeys((size + 1, _half_more(size), _double(size)))
            taken = 0
            for other in tried:
                reason = self._fault(module, {name: other}) if taken < MOST_TRIED else ""
                if reason:
                    reasons.setdefault(name, reason)
                elif taken < MOST_TRIED:
                    taken += 1
                    found.append({name: other})
            if not any(one.get(name, size) != size for one in found):
                raise InputError(
                    f"model.inputs: the model takes no other {name} than {size} (tried {', '.join(map(str, tried))}: "
                    f"{reasons[name]}); leave it out of dynamic, or choose a size that others can be multiples of"
                )
        return found

    def _fault(self, module: nn.Module, sizes: Mapping[str, int]) -> str:
        """Return why the module does not run at `sizes`; empty where it does."""
        try:
            with torch.no_grad():
                call(module, self.inputs.draw(1, 0, sizes))
        except Exception as error:  # the module may raise anything
            if is_out_of_memory(error):
                raise
            return reason_of(error)
        return ""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return sizes of a sample, ranges, and which inputs have a batch."""
        return {
            name: {"shape": list(each.shape), "batched": each.batched}
            | ({} if each.range is None else dict(zip(("low", "high"), each.range, strict=True)))
            for name, each in self.inputs.named(self.whole).items()
        }


def _half_more(size: int) -> int:
    return size + max(1, size // 2)


def _double(size: int) -> int:
    return 2 * size


def samples_of(example: Inputs, inputs: ModelInputs | None, any_size: bool, whole: str = "input") -> Samples:
    """Return what a file is checked on: as the recipe describes it, else like the example.

    Raises:
        InputError: heights and widths are to be open, and the description says which dimensions are.
    """
    if inputs is None:
        return LikeExample(example, any_size)
    if any_size:
        raise InputError("export.dynamic_size: model.inputs name what is open, by dynamic; leave dynamic_size out")
    return AsDescribed(inputs, example, whole)
