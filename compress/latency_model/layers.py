"""Which layer of a model an operator of ONNX Runtime's optimised graph belongs to.

The exported file names every node after its module: `/layer1/layer1.0/conv1/Conv`. The runtime fuses and inserts
operators, whose names begin with that of a node or of its result, or say nothing (`ReorderOutput_token_3`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluators.latency.operators import Operator

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FUSED_OVER = 6
"""At most so many nodes away from its convolution a node lies that is fused with it."""

Place = tuple[str, ...]  # the modules that an operator's work is of: more than one where it was fused


class Layers:
    """The modules of an exported file's nodes.

    Args:
        file: as `compress.export.quick.write_to_time` wrote it.
        modules: names of all modules of the model.
    """

    def __init__(self, file: Path, modules: Collection[str]) -> None:
        import onnx

        self._modules = modules
        graph = onnx.load(file, load_external_data=False).graph
        self._nodes: dict[str, Any] = {node.name: node for node in graph.node}
        self._makers: dict[str, Any] = {result: node for node in graph.node for result in node.output}

    def places(self, operators: Sequence[Operator]) -> list[Place]:
        """Return for each operator, in their order of execution, the modules that it is of.

        One without a name of its own is of its neighbour's: one that prepares an input of the next one's, else of the
        one before.
        """
        found = [self._place(operator) for operator in operators]
        for index, operator in enumerate(operators):
            if found[index] is None:
                after = next((each for each in found[index + 1 :] if each is not None), None)
                before = found[index - 1] if index else None
                found[index] = (after if "input" in operator.name.lower() else before) or before or after
        return [place or ("",) for place in found]

    def times(self, operators: Sequence[Operator]) -> list[tuple[Place, float, int]]:
        """Return each place with the ms of all of its operators, and how many they are."""
        found: dict[Place, list[float]] = {}
        for place, operator in zip(self.places(operators), operators, strict=True):
            found.setdefault(place, []).append(operator.ms)
        return [(place, sum(each), len(each)) for place, each in found.items()]

    def _place(self, operator: Operator) -> Place | None:
        node = next(filter(None, map(self._node, _beginnings(operator.name))), None)
        if node is None:
            return None
        walked = [node]
        if any(kind in operator.type for kind in WEIGHTED) and node.op_type not in WEIGHTED:
            walked = self._back_to_weights(node)
        return tuple(dict.fromkeys(module_of(each.name, self._modules) for each in reversed(walked)))

    def _node(self, name: str) -> Any:
        return self._nodes.get(name) or self._makers.get(name)

    def _back_to_weights(self, node: Any) -> list[Any]:
        """Return the nodes from `node` back to the nearest convolution or product."""
        queue = deque([[node]])
        while queue:
            path = queue.popleft()
            if path[-1].op_type in WEIGHTED:
                return path
            if len(path) <= FUSED_OVER:
                queue += [[*path, self._makers[name]] for name in path[-1].input if name in self._makers]
        return [node]


def _beginnings(name: str) -> Iterator[str]:
    """Yield a name, then what is left without its last words."""
    while name:
        yield name
        name = name[: max(name.rfind("/"), name.rfind("_"), 0)]


def module_of(node: str, modules: Collection[str]) -> str:
    """Return the module that the scope of a node's name ends in: `/layer1/layer1.0/conv1/Conv` is of `layer1.0.conv1`.

    Scopes repeat the names of containers; what is not a module of the model adds nothing.
    """
    path = ""
    for part in node.split("/")[1:-1]:
        parent = path.rpartition(".")[0]
        for inside in dict.fromkeys((path, parent, "")):
            name = f"{inside}.{part}" if inside else part
            if name in modules and (not path or name.startswith(f"{path}.") or inside != ""):
                path = name
                break
    return path
