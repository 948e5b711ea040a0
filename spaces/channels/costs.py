"""What each layer of a narrowed model costs, as formulas of the widths: nothing is built to know it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.modes import run_once
from compress.graph.graph import Graph, Size, evaluate
from spaces.layers import Layer


@dataclass(frozen=True)
class Row:
    """One layer: `params` and `macs` are sums of constants times products of widths; `block` can be left out."""

    layer: str
    operation: str
    out: Size
    size: int
    stride: int
    block: str | None
    params: Size
    macs: Size

    def at(self, widths: Mapping[str, int]) -> Layer:
        """Return the row for these widths."""
        params, macs = evaluate(self.params, widths), evaluate(self.macs, widths)
        return Layer(self.layer, self.operation, evaluate(self.out, widths), self.size, self.stride, params, macs)


def make_rows(
    module: nn.Module,
    graph: Graph,
    decided: Collection[str],
    blocks: Sequence[str],
    images: Tensor,
    given: Mapping[str, str] | None = None,
) -> tuple[Row, ...]:
    """Return a row for every layer that multiplies, in the order of execution; together they cover the whole model.

    Args:
        module: the whole model.
        graph: traced on `images` (1, C, H, W).
        decided: groups whose widths vary; the others count as they are.
        blocks: blocks that can be left out.
        images: tells the size of every map.
        given: to which layer's row a module belongs, where that is known.
    """
    fixed = {name: width for name, width in graph.widths().items() if name not in decided}
    layers = list(dict.fromkeys(op.layer for op in graph.operations))
    macs: dict[str, list[Size]] = {layer: [] for layer in layers}
    for op in graph.operations:
        macs[op.layer].append(_polynomial(op.constant, op.sizes, fixed))
    params: dict[str, list[Size]] = {layer: [] for layer in layers}
    owners = _owners([name for name in graph.tensors if name in graph.parameters], layers, blocks, given or {})
    for name, owner in owners.items():
        params[owner].append(_polynomial(1, graph.tensors[name], fixed))
    outputs = _output_shapes(module, layers, images)
    rows = []
    before = images.shape[-1]
    for layer in layers:
        channels = graph.tensors.get(_weight(layer, graph), (((1, ()),),))[_out_dim(module, layer)]
        size = _side(outputs.get(layer), evaluate(channels, graph.widths()), before)
        stride = max(1, round(before / size)) if size > 1 else 1
        out = _polynomial(1, (channels,), fixed)
        total, work = _sum(params[layer]), _sum(macs[layer])
        rows.append(Row(layer, _operation(module, layer), out, size, stride, _block(layer, blocks), total, work))
        before = size
    return tuple(rows)


def _polynomial(constant: int, factors: Sequence[Size], fixed: Mapping[str, int]) -> Size:
    """Multiply sums out; widths that do not vary become part of the constants."""
    terms = []
    for picked in product(*factors):
        names = [name for _, names in picked for name in names]
        known = math.prod(fixed[name] for name in names if name in fixed)
        number = constant * known * math.prod(number for number, _ in picked)
        terms.append((number, tuple(sorted(name for name in names if name not in fixed))))
    return _sum([tuple(terms)])


def _sum(sizes: Iterable[Size]) -> Size:
    total: dict[tuple[str, ...], int] = {}
    for size in sizes:
        for number, names in size:
            total[names] = total.get(names, 0) + number
    return tuple((number, names) for names, number in total.items())


def _owners(
    tensors: Sequence[str], layers: Sequence[str], blocks: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Give every parameter to the row of its own layer, else to the last row before it inside the same block."""
    owners: dict[str, str] = {}
    homeless: list[str] = []
    last: dict[str | None, str] = {}
    for name in tensors:
        own, block = name.rpartition(".")[0], _block(name, blocks)
        if own in given:
            owners[name] = given[own]
            continue
        if own in layers:
            last[block] = own
        if block in last:
            owners[name] = last[block]
        else:
            homeless.append(name)
    first = {_block(layer, blocks): layer for layer in reversed(layers)}
    return owners | {name: first[_block(name, blocks)] for name in homeless}


def _block(name: str, blocks: Iterable[str]) -> str | None:
    return next((block for block in blocks if name == block or name.startswith(f"{block}.")), None)


def _weight(layer: str, graph: Graph) -> str:
    """Return the matrix whose outputs a layer hands on: its own, else the last one inside it."""
    prefix = f"{layer}." if layer else ""
    inside = [n for n in graph.tensors if n.startswith(prefix) and n.endswith("weight") and len(graph.tensors[n]) > 1]
    return f"{prefix}weight" if f"{prefix}weight" in inside or not inside else inside[-1]


def _out_dim(module: nn.Module, layer: str) -> int:
    return 1 if getattr(module.get_submodule(layer), "transposed", False) else 0


def _output_shapes(module: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = output.shape

        return hook

    handles = [module.get_submodule(name).register_forward_hook(note(name)) for name in layers]
    run_once(module, images, handles)
    return shapes


def _side(shape: torch.Size | None, channels: int, before: int) -> int:
    """Return the side of a map whose layout may be NCHW, NHWC or a sequence; `before` where nothing is known."""
    return before if shape is None else max(1, math.isqrt(math.prod(shape) // channels))


def _operation(module: nn.Module, layer: str) -> str:
    part = module.get_submodule(layer)
    if isinstance(part, nn.modules.conv._ConvNd):
        kernel = "x".join(dict.fromkeys(str(side) for side in part.kernel_size))
        kind = "dwconv" if part.groups == part.in_channels > 1 else "conv"
        return f"{kind} k{kernel}" + (f" g{part.groups}" if kind == "conv" and part.groups > 1 else "")
    return "linear" if isinstance(part, nn.Linear) else "matmul"
