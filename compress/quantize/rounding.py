"""How a file of integers rounds, read off the file itself: which activations and weights it holds as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compress.quantize.float_file import FloatFile

if TYPE_CHECKING:
    from compress.quantize.writer import Way

Array = np.ndarray[Any, Any]

RENAMED = "_QuantizeLinear_Input"
"""What the quantiser adds to the name of an output of the graph, whose own name its last node takes."""


@dataclass(frozen=True)
class OfActivation:
    """One scale for a whole tensor; gradients pass straight through, but where values are clipped."""

    scale: float
    zero: int
    low: int
    high: int

    def __call__(self, value: Tensor) -> Tensor:
        """Return `value` (any shape) as it is after the integers."""
        # float32 whatever the precision of the layers: scales of bf16 have three digits. ONNX Runtime divides by the
        # scale, PyTorch multiplies by its inverse, which tells means of integers that lie halfway apart.
        steps = value.float() / self.scale
        return torch.fake_quantize_per_tensor_affine(steps, 1.0, self.zero, self.low, self.high) * self.scale


@dataclass(frozen=True)
class OfLayer:
    """How weight and bias of a layer are rounded: by scales that follow the weight as it is trained.

    They are what ONNX Runtime's quantiser finds from the weight as it is. The bias becomes 32-bit integers, whose scale
    is that of the weight times that of the layer's input.

    Attributes:
        channels: whether each output channel has a scale; else one for all.
        symmetric: whether the zero is 0.
        low: the least integer.
        high: the largest.
        input: scale of the layer's input; None where it has no bias in the file.
    """

    channels: bool
    symmetric: bool
    low: int
    high: int
    input: float | None

    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return `weight` (output channels, ...) as it is after the integers, and its scales (output channels or 1,).

        Gradients pass straight through.
        """
        weight = weight.float()
        flat = weight.detach().flatten(1) if self.channels else weight.detach().reshape(1, -1)
        least, largest = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
        if self.symmetric:
            largest = torch.maximum(-least, largest)
            least = -largest
        scale = (largest - least) / (self.high - self.low)
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
        zero = torch.zeros_like(scale) if self.symmetric else torch.round(self.low - least / scale)
        zero = zero.to(torch.int32)
        if self.channels:
            return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, self.low, self.high), scale
        return torch.fake_quantize_per_tensor_affine(weight, scale[0], zero[0], self.low, self.high), scale

    def error_of_bias(self, bias: Tensor, scale: Tensor) -> Tensor:
        """Return by how much the bias (output channels,) is off after the integers; `scale` is the weight's."""
        if self.input is None:
            return torch.zeros_like(bias)
        step = scale * self.input
        return torch.round(bias / step) * step - bias


@dataclass(frozen=True)
class Roundings:
    """What a file rounds.

    Attributes:
        activations: by the names of the float file's tensors.
        layers: by the names of the modules.
    """

    activations: Mapping[str, OfActivation]
    layers: Mapping[str, OfLayer]


def roundings_of(file: Path, way: Way, source: FloatFile) -> Roundings:
    """Return how `file`, written from `source` in a static `way`, rounds."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.quant_utils import get_qmin_qmax_for_qType

    assert way.types is not None
    model = onnx.load(file)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    activations: dict[str, OfActivation] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            bounds = np.iinfo(zero.dtype)
            scale = float(constants[node.input[1]])
            name = node.input[0].removesuffix(RENAMED)
            activations[name] = OfActivation(scale, int(zero), int(bounds.min), int(bounds.max))
    symmetric = way.types.symmetric_weights
    kind = getattr(QuantType, way.types.weight).tensor_type
    low, high = (int(each) for each in get_qmin_qmax_for_qType(kind, way.types.reduce_range, symmetric))
    nodes = {node.name: node for node in model.graph.node}
    layers: dict[str, OfLayer] = {}
    for layer in source.layers:
        inputs = [_scale(makers.get(name), constants) for name in nodes[layer.node].input]
        if layer.weighted and inputs[1] is not None and inputs[0] is not None:
            of_input = float(inputs[0]) if len(inputs) > 2 else None
            layers[layer.name] = OfLayer(inputs[1].size > 1, symmetric, low, high, of_input)
    return Roundings(activations, layers)


def _scale(maker: Any, constants: Mapping[str, Array]) -> Array | None:
    """Return the scale of what a node gives, if that was integers."""
    return constants[maker.input[1]] if maker is not None and maker.op_type == "DequantizeLinear" else None
