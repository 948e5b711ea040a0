"""The exported float file as the quantiser takes it: prepared, and its layers by the names that users know."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compress.core.globs import named
from compress.quantize.quiet import quiet

MULTIPLYING = ("Conv", "MatMul", "Gemm")
"""Operators that the time of a network goes into."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies.

    Attributes:
        node: its name in the prepared file.
        name: of the module whose weight it has, such as "layer1.0.conv1"; else the node's.
        operator: "Conv", "MatMul" or "Gemm".
        weighted: whether one operand is constant; in attention, both are activations.
    """

    node: str
    name: str
    operator: str
    weighted: bool


@dataclass(frozen=True)
class FloatFile:
    """An exported file, and `model`, an onnx.ModelProto with what ONNX Runtime's graph optimiser would fuse anyway.

    `prepared` is where the latter lies.
    """

    path: Path
    prepared: Path
    model: Any
    layers: tuple[Layer, ...]

    @classmethod
    def prepare(cls, path: Path, folder: Path, weights: Mapping[str, np.ndarray[Any, Any]]) -> FloatFile:
        """Prepare the file at `path` in `folder`; `weights` are the module's, by the names of its parameters."""
        import onnx
        from onnxruntime.quantization import quant_pre_process

        prepared = folder / "prepared.onnx"
        with quiet():
            # symbolic shapes take seconds and are of use where sizes other than the batch are open
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        _name_nodes(model)
        onnx.save(model, prepared)
        return cls(path, prepared, model, tuple(_layers(model, weights)))

    @cached_property
    def entries(self) -> Sequence[Any]:
        """The file's inputs as ONNX Runtime has them: name, type and shape."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(self.prepared), options, providers=["CPUExecutionProvider"])
        entries: Sequence[Any] = session.get_inputs()
        return entries

    def share_of(self, *operators: str) -> float:
        """Return which part of the layers with weights are `operators`."""
        weighted = [layer for layer in self.layers if layer.weighted]
        return sum(layer.operator in operators for layer in weighted) / max(1, len(weighted))

    def matching(self, globs: tuple[str, ...]) -> list[Layer]:
        """Return the layers that `globs` name, themselves or a module around them."""
        return [layer for layer in self.layers if any(named(layer.name, glob) for glob in globs)]


def _name_nodes(model: Any) -> None:
    """Give nodes without a name, or with that of another, one of their own."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        taken.add(node.name)


def _layers(model: Any, weights: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Layer]:
    from onnx import numpy_helper

    constants = {each.name: each for each in model.graph.initializer}
    by_content = {
        _content(turned): name.removesuffix(".weight")
        for name, value in weights.items()
        if value.ndim == 2
        for turned in (value, value.T)
    }
    for node in model.graph.node:
        if node.op_type not in MULTIPLYING:
            continue
        weight = next((constants[each] for each in node.input[:2] if each in constants), None)
        name = node.name
        if weight is not None and (own := _own(weight.name, weights)) in weights:
            name = own.removesuffix(".weight")
        elif (own := _own(f"{_module_of(node.name)}.weight", weights)) in weights:
            name = own.removesuffix(".weight")
        elif weight is not None:  # an exporter that turns linear layers' weights over gives them names of its own
            name = by_content.get(_content(numpy_helper.to_array(weight)), name)
        yield Layer(node.name, name, node.op_type, weight is not None)


def _own(name: str, weights: Collection[str]) -> str:
    """Return the model's name of a parameter: files of several inputs or outputs hold the model as `module`."""
    return name if name in weights else name.removeprefix("module.")


def _module_of(node: str) -> str:
    """Return the module that torch's TorchScript exporter names a node after: a.0.b for /a/a.0/b/Conv."""
    parts: list[str] = []
    for part in node.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def _content(value: np.ndarray[Any, Any]) -> tuple[tuple[int, ...], str]:
    return value.shape, hashlib.sha256(np.ascontiguousarray(value, np.float32).tobytes()).hexdigest()
