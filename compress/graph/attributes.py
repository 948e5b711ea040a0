"""Numbers that modules keep beside their tensors: which of them repeat a width, and which might."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from inspect import getattr_static
from math import prod
from typing import Any

from torch import nn

from compress.graph import axes
from compress.graph.axes import Axis, Dim
from compress.graph.graph import Candidate, Formula, Size
from compress.graph.trace import Trace

MOST_OPTIONS = 4


def formula(dim: Dim, names: Mapping[Axis, str]) -> Size:
    """Write the size of a dimension as a formula of group widths."""
    terms: dict[tuple[str, ...], int] = {}
    for segment in axes.expand(dim):
        key = tuple(names[axis] for axis in segment if axis in names)
        terms[key] = terms.get(key, 0) + prod(axis.size for axis in segment if axis not in names)
    return tuple((constant, key) for key, constant in terms.items())


def layer_attributes(found: Trace, model: nn.Module, names: Mapping[Axis, str]) -> dict[str, dict[str, Formula]]:
    """Return the attributes of torch's own layers, which say what their tensors' shapes say, by module."""
    result: dict[str, dict[str, Formula]] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        sizes = {
            leaf: tuple(formula(dim, names) for dim in found.tensors[f"{prefix}{leaf}"])
            for leaf in ("weight", "running_mean")
            if f"{prefix}{leaf}" in found.tensors
        }
        result[name] = dict(_of_layer(module, sizes)) or _of_plain_norm(found, name, module, names)
        if isinstance(module, nn.Transformer):
            outputs = (tensor for tensor in found.tensors if tensor.startswith(prefix) and "out_proj.weight" in tensor)
            result[name] = {"d_model": formula(found.tensors[next(outputs)][0], names)}
    for (name, attribute), dim in found.counts.items():
        result[name][attribute] = formula(dim, names)
    return {name: attributes for name, attributes in result.items() if attributes}


def _of_layer(module: nn.Module, sizes: Mapping[str, tuple[Size, ...]]) -> dict[str, Formula]:
    """Return the attributes of torch's own layers that repeat the shape of their weight."""
    weight = sizes.get("weight")
    if isinstance(module, nn.Linear) and weight:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        if module.groups == 1:
            first, second = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
            return {first: weight[0], second: weight[1]}
        if module.groups == module.in_channels:
            return {"out_channels": weight[0], "in_channels": weight[0]}
        return {"out_channels": weight[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight:
        return {"normalized_shape": weight}
    if isinstance(module, nn.modules.batchnorm._NormBase) and (weight or "running_mean" in sizes):
        return {"num_features": (weight or sizes["running_mean"])[0]}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    return {}


def _of_plain_norm(found: Trace, name: str, module: nn.Module, names: Mapping[Axis, str]) -> dict[str, Formula]:
    """Return the attributes of a norm without parameters: they repeat the shape of its input."""
    step = next((step for step in found.steps if step.module == name and step.inputs), None)
    if step is None:
        return {}
    dims = step.inputs[0]
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(formula(dim, names) for dim in dims[-len(module.normalized_shape) :])}
    if isinstance(module, nn.modules.batchnorm._NormBase) and len(dims) > 1:
        return {"num_features": formula(dims[1], names)}
    return {}


def candidates(
    found: Trace, model: nn.Module, names: Mapping[Axis, str], certain: Mapping[str, Mapping[str, Formula]]
) -> tuple[Candidate, ...]:
    """Return the attributes that the forward pass reads and whose value is that of a width seen by their module.

    Those in `certain` are none.
    """
    result = []
    for name, attribute in sorted(found.attributes_read):
        if attribute in certain.get(name, ()):
            continue
        module = model.get_submodule(name)
        value = getattr_static(module, attribute, None)  # of its class, too; what a property computes follows by itself
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if options := _options(value, found.seen(name), names):
            result.append(Candidate(name, attribute, kind, options))
        elif options := _options(value, found.handed_on(name), names):  # compared with a width, as by an assertion
            result.append(Candidate(name, attribute, kind, options, handled=False))
    return tuple(result)


def _options(value: Any, dims: list[Dim], names: Mapping[Axis, str]) -> dict[str, Formula]:
    if isinstance(value, int) and not isinstance(value, bool):
        return dict(_widths_of(value, dims, names))
    if not isinstance(value, (tuple, list)) or not all(type(item) is int for item in value) or not value:
        return {}
    each = [_widths_of(item, dims, names) for item in value]
    labels = list(dict.fromkeys(label for options in each for label in options))
    found: dict[str, Formula] = {
        label: tuple(options.get(label, ((item, ()),)) for item, options in zip(value, each, strict=True))
        for label in labels
    }
    turns = _in_turn(value, each)
    return {**({} if turns in found.values() else {"in turn": turns}), **found}


def _in_turn(value: Sequence[int], each: Sequence[Mapping[str, Size]]) -> Formula:
    """Return the first of several equal numbers as the first width of that size, the next as the next: `splits`."""
    seen: Counter[int] = Counter()
    turns: list[Size] = []
    for item, options in zip(value, each, strict=True):
        sizes = list(options.values()) or [((item, ()),)]
        turns.append(sizes[min(seen[item], len(sizes) - 1)])
        seen[item] += 1
    return tuple(turns)


def _widths_of(value: int, dims: list[Dim], names: Mapping[Axis, str]) -> dict[str, Size]:
    """Return the widths of this size: heads first, then single axes, then whole dimensions."""
    if value <= 1:
        return {}
    single = dict.fromkeys(axis for dim in dims for axis in axes.axes_of(dim) if axis in names and axis.size == value)
    heads = [axis for axis in single if "heads" in axis.marks]
    found: dict[str, Size] = {"heads": ((1, (names[heads[0]],)),)} if heads else {}
    sizes: list[Size] = [((1, (names[axis],)),) for axis in single if axis not in heads]
    whole = (formula(dim, names) for dim in dims if axes.dim_size(dim) == value)
    sizes += [size for size in whole if any(keys for _, keys in size)]
    unlike = [size for size in dict.fromkeys(sizes) if size not in found.values()]
    return {**found, **{f"width {number}": size for number, size in enumerate(unlike[:MOST_OPTIONS])}}
