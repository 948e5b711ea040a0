"""The supernet of NAS-Bench-201: every edge of every cell holds all operations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice
from spaces.candidates import AdditiveMacs, Candidates
from spaces.nas_bench_201.code import OPERATIONS
from spaces.nas_bench_201.network import Cell, operation
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.nas_bench_201.space import NASBench201Space


def all_operations(name: str, channels: int) -> nn.Module:
    """Return the candidates of an edge."""
    return Candidates({each: operation(each, channels) for each in OPERATIONS})


class NASBench201Supernet(Supernet):
    """A network whose edges hold every operation, with weights of its own in every cell; the rest is shared.

    All cells of an architecture are alike, so a mixture has one set of weights for each of the six edges.
    """

    space: NASBench201Space

    def __init__(self, space: NASBench201Space, task: Task) -> None:
        super().__init__(space, task)
        self.network = space.network(task, all_operations)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of the active architecture or mixture."""
        logits: Tensor = self.network(images)
        return logits

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the shared state under the names of `arch`'s stand-alone network."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.network.state_dict().items():
            before, edges, after = name.partition(".edges.")
            if not edges:
                found[name] = tensor
                continue
            edge, candidate, rest = after.split(".", 2)
            if arch[edge] == candidate:
                found[f"{before}.edges.{edge}.{rest}"] = tensor
        return found

    def mixtures(self) -> Mapping[str, tuple[Choice, ...]]:
        """Return the six edges and their operations."""
        return {decision.name: decision.choices for decision in self.space.decisions}

    def expected_macs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation over operations that are drawn independently, the same in all cells."""
        return self._macs.expected(weights)

    @cached_property
    def _macs(self) -> AdditiveMacs:
        return AdditiveMacs(self.space, self.task)

    def _activate(self, arch: Architecture) -> None:
        for name, candidates in self._edges():
            candidates.choose(arch.text(name))

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        for name, candidates in self._edges():
            candidates.mix({str(choice): weight for choice, weight in weights[name].items()})

    def _edges(self) -> list[tuple[str, Candidates]]:
        cells = [layer for layer in self.network.layers if isinstance(layer, Cell)]
        edges = [pair for cell in cells for pair in cell.edges.items()]
        return [(name, candidates) for name, candidates in edges if isinstance(candidates, Candidates)]
