"""The DARTS supernet: every edge of every cell holds all operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice
from spaces.candidates import Candidates, total
from spaces.darts.costs import edge_cost
from spaces.darts.genotype import CELLS, NODES, OPERATIONS, Genotype, Kind, Node, edges
from spaces.darts.network import Cell, DARTSNetwork, edge_name, operation_at
from spaces.darts.skeleton import Site, sites
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.darts.space import DARTSSpace

CANDIDATES = ("none", *OPERATIONS)
"""What an edge of a mixture may be, in the published order."""
_EDGES = tuple(edge for node in NODES for edge in edges(node))


class SharedCell(Cell):
    """A cell with every edge, of which those run that have a candidate chosen."""

    def _into(self, node: int) -> list[tuple[int, str]]:
        return [(state, name) for state, name in super()._into(node) if self.candidates(name).chosen]

    def _edge(self, name: str, x: Tensor) -> Tensor:
        candidates = self.candidates(name)
        y: Tensor = candidates(x)
        kept = all(isinstance(candidates[each], nn.Identity) for each in candidates.chosen)
        return y if kept else self.drop_path(y)

    def candidates(self, name: str) -> Candidates:
        """Return what an edge may be."""
        edge = self.edges[name]
        assert isinstance(edge, Candidates)
        return edge


class DARTSSupernet(Supernet):
    """A network whose cells have all edges with all operations, with weights of their own in every cell.

    A mixture has one set of weights for each of the 14 edges of the two kinds of cells: `normal_0_2` is that of all
    normal cells from state 0 to node 2. Its first candidate, `none`, takes part in the weights, but never in an
    architecture; it computes nothing, so where it alone has a weight no gradient flows to the edge. Batch norms are
    those of the space's option `norm`, in the supernet and in what is cut out, which so computes the same.
    """

    space: DARTSSpace

    def __init__(self, space: DARTSSpace, task: Task) -> None:
        super().__init__(space, task)
        self.auxiliary_weight = DARTSNetwork.auxiliary_weight
        self.network = DARTSNetwork(space.config, task, self._all_edges, SharedCell)
        self.kinds: list[Kind] = [site.kind for site in sites(space.config, task.img_size)]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]  # auxiliary head
        """Return what `DARTSNetwork` returns for the active architecture or mixture."""
        return self.network(images)  # type: ignore[no-any-return]

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the shared state under the names of `arch`'s stand-alone network."""
        genotype = Genotype.from_choices(arch)
        kept = {kind: {edge_name(*ends): name for ends, name in genotype.operations(kind).items()} for kind in CELLS}
        found: dict[str, Tensor] = {}
        for name, tensor in self.network.state_dict().items():
            before, inside, after = name.partition(".edges.")
            if not inside:
                found[name] = tensor
                continue
            edge, candidate, rest = after.split(".", 2)
            if kept[self.kinds[int(before.split(".")[1])]].get(edge) == candidate:
                found[f"{before}.edges.{edge}.{rest}"] = tensor
        return found

    def mixtures(self) -> Mapping[str, tuple[Choice, ...]]:
        """Return the edges of the normal cell, then those of the reduction cell; each may be `none` as well."""
        return {f"{kind}_{edge_name(*ends)}": CANDIDATES for kind in CELLS for ends in _EDGES}

    def decode(self, weights: Mapping[str, Tensor]) -> Architecture:
        """Return each node's two edges with the strongest operation that is not `none`, and these operations.

        Edges are compared with each other, as published by the softmax over their candidates: `weights` are
        probabilities. Of equal ones the first counts.
        """
        cells = {
            kind: tuple(
                _strongest([weights[f"{kind}_{edge_name(*ends)}"][1:] for ends in edges(node)]) for node in NODES
            )
            for kind in CELLS
        }
        return self.space.check(Genotype(**cells).choices())

    def expected_macs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation over candidates that are drawn independently, whatever the number of edges is."""
        fixed, added = self._macs
        return fixed + total((weights[name] * weights[name].new_tensor(macs)).sum() for name, macs in added.items())

    @cached_property
    def _macs(self) -> tuple[int, dict[str, list[int]]]:
        """Return the MACs outside of edges, and those of every candidate of an edge in all cells together."""
        places = sites(self.space.config, self.task.img_size)
        added = {
            f"{kind}_{edge_name(*ends)}": [
                sum(edge_cost(name, ends[0], site, True).macs for site in places if site.kind == kind)
                for name in CANDIDATES
            ]
            for kind in CELLS
            for ends in _EDGES
        }
        arch = next(iter(self.space))
        chosen = Genotype.from_choices(arch)
        inside = sum(
            added[f"{kind}_{edge_name(*ends)}"][CANDIDATES.index(name)]
            for kind in CELLS
            for ends, name in chosen.operations(kind).items()
        )
        return self.space.cost(arch, self.task)["macs"] - inside, added

    def _activate(self, arch: Architecture) -> None:
        genotype = Genotype.from_choices(arch)
        for kind, cell in self._cells():
            chosen = genotype.operations(kind)
            for ends in _EDGES:
                cell.candidates(edge_name(*ends)).choose(*([chosen[ends]] if ends in chosen else []))

    def _mix(self, weights: Mapping[str, Mapping[Choice, Tensor]]) -> None:
        for kind, cell in self._cells():
            for name in (edge_name(*ends) for ends in _EDGES):
                parts = weights[f"{kind}_{name}"].items()
                cell.candidates(name).mix({str(choice): weight for choice, weight in parts if choice != "none"})

    def _cells(self) -> list[tuple[Kind, SharedCell]]:
        cells = [cell for cell in self.network.cells if isinstance(cell, SharedCell)]
        return list(zip(self.kinds, cells, strict=True))

    def _all_edges(self, site: Site) -> dict[str, Candidates]:
        made = {}
        for state, node in _EDGES:
            modules = {name: operation_at(name, state, site, self.space.config) for name in OPERATIONS}
            made[edge_name(state, node)] = Candidates(modules)
        return made


def _strongest(weights: Sequence[Tensor]) -> Node:
    """Return the two strongest of a node's edges by their strongest operation, given the weights of operations."""
    best = [(edge.argmax().item(), edge.max().item()) for edge in weights]
    one, other = sorted(sorted(range(len(best)), key=lambda state: -best[state][1])[:2])
    return (one, OPERATIONS[int(best[one][0])]), (other, OPERATIONS[int(best[other][0])])
