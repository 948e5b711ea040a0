"""Path Ensemble: a pre-norm transformer's features as a sum of paths, of which some are left out or weighed.

Chang et al., "Revisiting Vision Transformer from the View of Path Ensemble", ICCV 2023. With the embedding P_0 and what
attention and MLP of block l add to the residual stream, A_l and F_l, the features are X = P_0 + sum (A_l + F_l). The
weights act in this last sum alone: what goes through the blocks stays as it is, so nothing becomes smaller or faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.tensors import Inputs
from compress.transforms import Transform, transforms
from compress.transforms.pre_norm import NoRow, branches, replaced, rows_of

Scale = Literal["none", "scalar", "channel"]


class PathEnsemble(NoRow):
    """Pre-norm blocks in a row that give the weighed sum of their paths: (..., d) -> (..., d).

    Path 0 is the input. With `separate` paths 2l - 1 and 2l are attention and MLP of block l, otherwise path l is what
    both add.
    """

    why_no_row: ClassVar[str] = (
        "the paths of this model are weighed already; kind: paths acts once, and tokens cannot leave it any more"
    )

    def __init__(
        self, blocks: Sequence[nn.Module], width: int, left_out: Sequence[int] = (), scale: Scale = "none",
        separate: bool = True,
    ) -> None:  # fmt: skip
        """Take over `blocks`.

        Args:
            blocks: of the kinds that `compress.transforms.pre_norm.branches` knows.
            width: d, the channels of the stream.
            left_out: numbers of the paths that are left out of the sum.
            scale: EnsembleScale: a learnt factor for every path that stays, or for every channel of it; 1 at first.
            separate: whether attention and MLP of a block are two paths.
        """
        super().__init__()
        for number, block in enumerate(blocks):
            self.add_module(str(number), block)  # as in an nn.Sequential, so that weights keep their names
        self.depth, self.separate = len(blocks), separate
        kept = [path for path in range(number_of_paths(len(blocks), separate)) if path not in set(left_out)]
        self.kept = frozenset(kept)
        sizes = {"none": 0, "scalar": 1, "channel": width}
        size = sizes[scale]
        # vectors, one a path: as such they do not decay
        self.scales = nn.ParameterDict({str(path): nn.Parameter(torch.ones(size)) for path in kept if size})
        self._prefixes: tuple[int, ...] = ()

    def extra_repr(self) -> str:
        """Tell which paths are summed."""
        return f"paths={sorted(self.kept)}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum; inside `with_prefixes`, below it the sums of the shorter paths alone (along the batch)."""
        total = self._added(None, 0, x)
        prefixes = []
        for number in range(1, self.depth + 1):
            block = self.get_submodule(str(number - 1))
            attended, mixed = branches(block, x)
            x = x + attended + mixed
            if self.separate:
                total = self._added(total, 2 * number - 1, attended)
                total = self._added(total, 2 * number, mixed)
            else:
                total = self._added(total, number, attended + mixed)
            if number in self._prefixes:
                prefixes.append(torch.zeros_like(x) if total is None else total)
        total = torch.zeros_like(x) if total is None else total
        return torch.cat([total, *prefixes]) if prefixes else total

    def _added(self, total: Tensor | None, path: int, value: Tensor) -> Tensor | None:
        if path not in self.kept:
            return total
        if str(path) in self.scales:
            value = value * self.scales[str(path)]
        return value if total is None else total + value

    @contextmanager
    def with_prefixes(self, blocks: Sequence[int]) -> Iterator[None]:
        """Let `forward` give the sums up to so many blocks as well: (1 + len(blocks)) times the batch, in that order.

        What follows on the blocks has to treat the images of a batch each by itself, as layer norm and a head do.
        """
        self._prefixes = tuple(sorted(blocks))
        try:
            yield
        finally:
            self._prefixes = ()


def number_of_paths(blocks: int, separate: bool) -> int:
    """Return how many paths a row of so many blocks has, the embedding among them."""
    return 1 + blocks * (2 if separate else 1)


def ensemble_of(model: nn.Module) -> PathEnsemble | None:
    """Return the part of `model` that sums up paths, if there is one."""
    return next((module for module in model.modules() if isinstance(module, PathEnsemble)), None)


@transforms.register("paths")
class Paths(Transform):
    """Weigh the paths of the last row of pre-norm blocks in the sum that goes to the head."""

    kind: Literal["paths"] = "paths"
    row: str = Field(description="name of the nn.Sequential with the blocks")
    left_out: list[int] = Field([], description="paths that are left out of the sum; 0 is the embedding")
    scale: Scale = Field("none", description="learnt factors of the other paths")
    separate: bool = Field(True, description="attention and MLP of a block are two paths")

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the model with the row replaced, whose weights keep their names.

        Raises InputError where there is no such row.
        """
        row = next((row for row in rows_of(model, example_inputs) if row.name == self.row), None)
        if row is None:
            raise InputError(f"the model has no row of pre-norm blocks called {self.row!r}")
        inside = PathEnsemble(list(row.blocks), row.width, self.left_out, self.scale, self.separate)
        return replaced(model, self.row, inside)
