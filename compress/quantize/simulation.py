"""A module whose forward pass rounds as a file of integers does, so that it can be trained to stand that.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 3: what the file holds as integers is rounded in floats, and gradients pass straight through. Which tensors
these are, the file says (`rounding`); where they come up in the module is found by their values, in one pass of both
over the same samples. So batch norms need not be folded: what a convolution with a folded norm gives in the file, the
norm gives in the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.core.errors import CompressError
from compress.core.modes import evaluating
from compress.core.tensors import called, mapped
from compress.export.onnx_model import feed
from compress.graph.fold import foldable_pairs
from compress.quantize.float_file import FloatFile
from compress.quantize.rounding import OfActivation, OfLayer, Roundings
from compress.transforms.layers import PLAIN
from evaluators.datasets.batch import Batch

ALIKE = 1e-3
"""How far values of file and module may be apart, as a part of the largest, and be the same tensor."""
WEIGHING = (F.conv1d, F.conv2d, F.conv3d, F.linear)
GATED: Mapping[Any, Callable[[Tensor], Tensor]] = {F.silu: torch.sigmoid, F.hardswish: F.hardsigmoid}

Seen = Callable[[int, str, Tensor], Tensor]
"""Takes the number of an operation, its name and what it gives; returns what goes on from there."""


class _Watched(TorchFunctionMode):
    """Numbers the operations that give floats, and lets what they take and give be replaced."""

    def __init__(self, seen: Seen, layers: Mapping[int, _Layer]) -> None:
        super().__init__()
        self.seen, self.layers, self.number = seen, layers, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func in GATED:  # files hold the gate and the product apart
            value = args[0] if args else named["input"]
            gate = self._seen("gate", GATED[func](value))
            return self._seen("mul", value * gate)
        weight = (named.get("weight") if len(args) < 2 else args[1]) if func in WEIGHING else None
        layer = self.layers.get(id(weight))
        if layer is None:
            result = func(*args, **named)
        else:
            rounded, shift = layer.rounded()
            if "weight" in named:
                named["weight"] = rounded
            else:
                args = (args[0], rounded, *args[2:])
            result = func(*args, **named)
            result = result + (shift if func is F.linear else shift.view(-1, *[1] * (rounded.ndim - 2)))
        name = getattr(func, "__name__", str(func))
        return result if name == "__get__" else self._seen(name, result)

    def _seen(self, name: str, result: Any) -> Any:
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        self.number += 1
        return self.seen(self.number, name, result)


@dataclass(frozen=True)
class _Layer:
    """A layer of the module, and the batch norm that the file has folded into it."""

    rounding: OfLayer
    layer: Any
    norm: Any

    def rounded(self) -> tuple[Tensor, Tensor]:
        """Return the weight, rounded, and what its outputs are shifted by (output channels,) as the bias is rounded."""
        weight = self.layer.weight
        bias = torch.zeros(len(weight), device=weight.device) if self.layer.bias is None else self.layer.bias.detach()
        gain = torch.ones_like(bias)
        if self.norm is not None:
            with torch.no_grad():
                own = torch.ones_like(bias) if self.norm.weight is None else self.norm.weight
                gain = own * torch.rsqrt(self.norm.running_var + self.norm.eps)
                bias = (bias - self.norm.running_mean) * gain + (0 if self.norm.bias is None else self.norm.bias)
                gain = torch.where(gain == 0, torch.ones_like(gain), gain)
        wide = gain.view(-1, *[1] * (weight.ndim - 1))
        weight, scale = self.rounding.weight(weight * wide)
        return weight / wide, self.rounding.error_of_bias(bias, scale) / gain


@dataclass
class Simulation:
    """Where a module rounds, and how.

    Attributes:
        inputs: by place among the floats that the module is called with.
        operations: (name, rounding) by number.
        layers: (rounding, name of the batch norm that the file has folded into it or None), by name.
        wanted: how many activations and weights the file rounds.
        found: how many of them were found in the module.
    """

    inputs: dict[int, OfActivation] = field(default_factory=dict)
    operations: dict[int, tuple[str, OfActivation]] = field(default_factory=dict)
    layers: dict[str, tuple[OfLayer, str | None]] = field(default_factory=dict)
    wanted: int = 0
    found: int = 0
    _running: list[_Watched] = field(default_factory=list)

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Let `model`, and copies that are made of it meanwhile, round in every forward pass inside the block.

        It computes as in evaluation then, also where it trains: the file's norms are folded, and it drops nothing.
        """
        before = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        after = model.register_forward_hook(self._end, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        if model.training:
            model.eval()
        modules = dict(model.named_modules())
        layers = {
            id(modules[name].weight): _Layer(rounding, modules[name], norm and modules[norm])
            for name, (rounding, norm) in self.layers.items()
        }
        args, kwargs = _each_float((args, kwargs), lambda place, value: self._given(place, value))
        self._running.append(_Watched(self._seen, layers))
        self._running[-1].__enter__()  # type: ignore[no-untyped-call]
        return args, kwargs

    def _end(self, model: nn.Module, args: Any, outputs: Any) -> None:
        self._running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _given(self, place: int, value: Tensor) -> Tensor:
        rounding = self.inputs.get(place)
        return value if rounding is None else rounding(value)

    def _seen(self, number: int, name: str, value: Tensor) -> Tensor:
        if number not in self.operations:
            return value
        expected, rounding = self.operations[number]
        if name != expected:
            raise CompressError(
                f"quantize.finetune: the model computes other operations than before ({name} in place of {expected}), "
                "so what its file rounds cannot be told"
            )
        return rounding(value)


def simulate(model: nn.Module, roundings: Roundings, source: FloatFile, batch: Batch) -> Simulation:
    """Return where `model` has to round to compute what a file does.

    Args:
        model: that `source` was exported from, on the CPU.
        roundings: of the file.
        source: the float file.
        batch: a few samples, by which tensors of both are told apart.
    """
    modules = dict(model.named_modules())
    norms = dict(foldable_pairs(model, batch.inputs))
    simulation = Simulation(wanted=len(roundings.activations) + len(roundings.layers))
    for name, rounding in roundings.layers.items():
        if isinstance(modules.get(name), PLAIN):
            simulation.layers[name] = rounding, norms.get(name)
    left = _values(source, list(roundings.activations), batch)
    simulation.found = len(simulation.layers)

    def matched(value: Tensor) -> OfActivation | None:
        own = value.detach().flatten()
        names = [name for name, wanted in left.items() if wanted.numel() == own.numel() and _same(own, wanted)]
        for name in names:
            del left[name]
        simulation.found += len(names)
        return roundings.activations[names[0]] if names else None

    def given(place: int, value: Tensor) -> Tensor:
        if (rounding := matched(value)) is not None:
            simulation.inputs[place] = rounding
        return value

    def seen(number: int, name: str, value: Tensor) -> Tensor:
        if (rounding := matched(value)) is not None:
            simulation.operations[number] = name, rounding
        return value

    inputs = mapped(batch.inputs, Tensor.clone)
    _each_float(((inputs,), {}) if isinstance(inputs, Tensor) else inputs, given)
    with evaluating(model), torch.no_grad(), _Watched(seen, {}):
        called(model, inputs)
    return simulation


def _values(source: FloatFile, names: list[str], batch: Batch) -> dict[str, Tensor]:
    """Return what these tensors of the float file are, flat, for a batch."""
    import onnx
    import onnxruntime

    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    there = {each.name for each in model.graph.output}
    given = {each.name for each in source.entries}
    made = [name for name in names if name not in given]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in there)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed: dict[str, np.ndarray[Any, Any]] = feed(source.path, source.entries, batch.inputs)
    values = dict(zip(made, session.run(made, fed), strict=True)) | {name: fed[name] for name in names if name in given}
    return {name: torch.from_numpy(np.asarray(value)).flatten() for name, value in values.items()}


def _same(value: Tensor, wanted: Tensor) -> bool:
    return bool((value - wanted).abs().max() <= ALIKE * wanted.abs().max())


def _each_float(value: Any, function: Callable[[int, Tensor], Tensor]) -> Any:
    """Return `value` with `function` of every tensor of floats in it, and of its place among them."""
    places = iter(range(1_000_000))
    return mapped(value, lambda each: function(next(places), each) if each.is_floating_point() else each)
