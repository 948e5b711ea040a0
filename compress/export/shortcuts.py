"""Shortcuts that pad channels with zeros, written as convolutions with zeros and ones: the same values, sooner.

A shortcut that takes every second pixel and pads channels (option A of He et al. 2016, section 4.2) has no weights, but
ONNX Runtime's blocked layout ends there, and with it the fusion of all sums and activations up to the next convolution
that stands alone: in a ResNet of CIFAR, two thirds of them. A convolution keeps the layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

MOST_CHANNELS = 128
"""Of more channels, nothing is saved that the products with zeros do not take (benchmarks/padded_shortcuts.py)."""
FOLDED = ("Cast", "Concat", "ConstantOfShape", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""What the numbers of a padding may come from: torch's TorchScript exporter computes them in the file."""


def padding_as_convolutions(model: Any) -> int:
    """Rewrite paddings of channels in an ONNX ModelProto, in place; return how many.

    Of float32 images with a known number of channels, at most `MOST_CHANNELS`; strides along height and width that lie
    directly before them go into the convolution.
    """
    import onnx

    graph = model.graph
    reader = _Reader(graph, next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx")))
    pads = [(node, _added_channels(node, reader)) for node in graph.node if node.op_type == "Pad"]
    found = [(node, around) for node, around in pads if around is not None]
    if not found:
        return 0  # before sizes are inferred, which copies the model
    shapes = onnx.shape_inference.infer_shapes(model).graph
    types = {each.name: each.type.tensor_type for each in (*shapes.value_info, *shapes.input)}
    count = sum(_rewritten(graph, node, around, reader, types) for node, around in found)
    if count:
        _without_unused(graph)
    return count


class _Reader:
    """Finds what makes the values of a graph, who takes them, and what those are that are constant."""

    def __init__(self, graph: Any, opset: int) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.opset = opset
        self._weights = {each.name: each for each in graph.initializer}
        self._taken = Counter(_taken(graph))

    def only_taken_once(self, name: str) -> bool:
        """Whether a value goes to one place alone, and is none that the model returns."""
        return self._taken[name] == 1

    def constant(self, name: str) -> Any:
        """Return a value as array, None where it depends on the inputs or is made in another way."""
        from onnx import numpy_helper
        from onnx.reference import ReferenceEvaluator

        if name in self._weights:
            return numpy_helper.to_array(self._weights[name])
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = next((each.t for each in node.attribute if each.name == "value"), None)
            return None if value is None else numpy_helper.to_array(value)
        if node.op_type not in FOLDED:
            return None
        given = {}
        for each in filter(None, node.input):
            given[each] = self.constant(each)
            if given[each] is None:
                return None
        outputs: Any = ReferenceEvaluator(node, opsets={"": self.opset}).run(None, given)
        return outputs[list(node.output).index(name)]

    def numbers(self, node: Any, place: int, default: list[int]) -> list[int] | None:
        """Return an input of a node as integers: `default` where it is left out, None where it is not constant."""
        if len(node.input) <= place or not node.input[place]:
            return default
        found = self.constant(node.input[place])
        return None if found is None else [int(each) for each in found.flatten()]


def _rewritten(graph: Any, pad: Any, around: tuple[int, int], reader: _Reader, types: dict[str, Any]) -> bool:
    """Put a convolution in the place of `pad`, which adds `around` channels of zeros; return whether it is of use."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    found = types.get(pad.input[0])
    if found is None or found.elem_type != TensorProto.FLOAT or len(found.shape.dim) != 4:
        return False
    channels = found.shape.dim[1].dim_value
    if not 0 < channels <= MOST_CHANNELS:
        return False
    source, strides = _before_strides(pad.input[0], reader)
    weight = np.zeros((around[0] + channels + around[1], channels, 1, 1), dtype=np.float32)
    weight[around[0] + np.arange(channels), np.arange(channels)] = 1.0
    name = f"{pad.output[0]}_ones"
    graph.initializer.append(numpy_helper.from_array(weight, name))
    pad.CopyFrom(
        helper.make_node("Conv", [source, name], list(pad.output), name=pad.name, kernel_shape=[1, 1], strides=strides)
    )
    return True


def _added_channels(pad: Any, reader: _Reader) -> tuple[int, int] | None:
    """Return how many channels of zeros go before and behind those of a batch of images; None: it pads otherwise."""
    mode = next((each.s for each in pad.attribute if each.name == "mode"), b"constant")
    amounts, axes = reader.numbers(pad, 1, []), reader.numbers(pad, 3, [0, 1, 2, 3])
    value = reader.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0
    if mode != b"constant" or value is None or float(value) != 0 or not amounts or axes is None:
        return None
    ends = {axis % 4: pair for axis, pair in zip(axes, zip(amounts, amounts[len(axes) :], strict=False), strict=False)}
    before, behind = ends.pop(1, (0, 0))
    if min(before, behind) < 0 or before + behind == 0 or any(end != (0, 0) for end in ends.values()):
        return None
    return before, behind


def _before_strides(name: str, reader: _Reader) -> tuple[str, list[int]]:
    """Return the value that `name` is every so many rows and columns of, from the first on, and these numbers."""
    strides = [1, 1]
    while reader.only_taken_once(name) and (node := reader.makers.get(name)) is not None and node.op_type == "Slice":
        starts, ends = reader.numbers(node, 1, []), reader.numbers(node, 2, [])
        axes, steps = reader.numbers(node, 3, [0, 1, 2, 3]), reader.numbers(node, 4, [1])
        if not starts or not ends or not axes or not steps or any(starts) or min(ends) < 2**31 - 1 or min(steps) < 1:
            break
        steps = steps if len(steps) == len(axes) else steps * len(axes)
        if any(axis % 4 < 2 and step != 1 for axis, step in zip(axes, steps, strict=True)):
            break
        for axis, step in zip(axes, steps, strict=True):
            if axis % 4 >= 2:
                strides[axis % 4 - 2] *= step
        name = node.input[0]
    return name, strides


def _without_unused(graph: Any) -> None:
    """Remove the nodes and weights that nothing takes any more."""
    while True:
        taken = set(_taken(graph))
        unused = [node for node in graph.node if not any(name in taken for name in node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for weight in [each for each in graph.initializer if each.name not in taken]:
        graph.initializer.remove(weight)


def _taken(graph: Any) -> Iterator[str]:
    """Yield every name that is taken in a graph, and in the branches and loops within it, as often as it is."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _taken(inner)
    yield from (each.name for each in graph.output)
