"""The multiple that channel widths should keep to on a target."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from evaluators.latency.ask import ask
from evaluators.latency.targets import TargetBase

WIDTHS_TRIED = (4, 8, 16)
BASE_WIDTH = 64
UNHINDERED = 0.9


@dataclass(frozen=True)
class WidthMultiple:
    """The multiple that channel widths should keep to on a target, and how that is known."""

    value: int
    source: str


@functools.cache
def width_multiple(target: TargetBase) -> WidthMultiple:
    """Return the multiple of channels that keeps the runtime's fast convolution path (ONNX Runtime's NCHWc blocks).

    16 with AVX-512, 8 with AVX2; on any other processor it is measured with chains of convolutions (about 20 s).
    """
    extension = ask(target, {"action": "cpu"})["vector_extension"]
    if extension == "avx512":
        return WidthMultiple(16, "AVX-512")
    if extension == "avx2":
        return WidthMultiple(8, "AVX2")
    return measured_width_multiple(target)


def measured_width_multiple(target: TargetBase) -> WidthMultiple:
    """Return the smallest m of 4, 8, 16 at which 64 + m channels cost as little per MAC as 64 do; else 32."""
    request = {
        "action": "compare", "threads": 1, "batch": 1, "input_size": None, "provider": "CPUExecutionProvider",
        "optimization": "all", "runs": 1, "seconds": 0, "max_seconds": 10, "precision": 0.1, "seed": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base = conv_chain(BASE_WIDTH, Path(folder))
        for multiple in WIDTHS_TRIED:
            width = BASE_WIDTH + multiple
            answer = ask(target, request, [base, conv_chain(width, Path(folder))])
            speed = answer["result"]["ratios"][0]["median"] * (width / BASE_WIDTH) ** 2
            if speed >= UNHINDERED:
                return WidthMultiple(
                    multiple, f"measured: per MAC, {width} channels run at {speed:.2f} of the speed of 64"
                )
    return WidthMultiple(32, "measured: none of 4, 8, 16 keeps the speed of 64 channels")


def conv_chain(width: int, folder: Path) -> Path:
    """Write three 3x3 convolutions of `width` channels on a 28 x 28 map, with ReLU between; return the file."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "input"
    for index in range(3):
        weight = generator.standard_normal((width, width, 3, 3), dtype=np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value = f"r{index}"
    shape = [1, width, 28, 28]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    path = folder / f"conv{width}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
