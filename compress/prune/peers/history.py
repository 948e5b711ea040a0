"""torch-pruning's pruning history as a plan of ours.

A history names root layers and indices; which other tensors follow is known to torch-pruning's dependency graph alone.
So the history is done again on a copy of the model whose tensors hold the numbers of their own positions: what is left
there tells what each tensor has kept. Our width graph must explain every removed position by units of its groups, the
plan is checked as any other, and what torch-pruning's module computes must be what the planned one does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError, did_you_mean, in_one_line
from compress.core.modes import evaluating
from compress.core.tensors import Inputs, call, tensors_in
from compress.core.wrappers import unwrapped
from compress.graph.apply import apply
from compress.graph.attention import NarrowAttention
from compress.graph.exactness import Exactness
from compress.graph.graph import Graph, layer_of
from compress.graph.known import Known
from compress.graph.plan import Plan, make_plan
from compress.prune.peers.tracing import History, redo, tensors_of, translated
from compress.prune.peers.units import units_left

TOLERANCE = 1e-4  # largest difference of two modules of the same weights, in terms of the largest output

_TRACING = ("customized_pruners", "unwrapped_parameters", "ignored_params", "forward_fn", "output_transform")


def plan_from_torch_pruning(history: History, model: nn.Module, example_inputs: Inputs, **tracing: Any) -> Plan:
    """Return the plan that does to `model` what torch-pruning did, for `compress.apply` and for bundles.

    >>> history = pruner.pruning_history()  # or DG.pruning_history()
    >>> plan = compress.plan_from_torch_pruning(history, dense, example_inputs)

    Numbers beside the tensors (`num_heads`, `head_dim`) follow by themselves, and attention keeps the scale that it was
    trained with.

    Args:
        history: in the order in which it happened, see `History`.
        model: the model before any pruning, with whatever weights; it stays as it is.
        example_inputs: on the model's device: a tensor (N, ...) of which the first sample is used, or one sample as a
            tuple (positional arguments) or dictionary (keyword arguments).
        tracing: what torch-pruning was told to follow this model (`customized_pruners`, `unwrapped_parameters`,
            `ignored_params`, `forward_fn`, `output_transform`), of this `model`.

    Raises:
        InputError: the history is not of this model, or removes what a plan cannot say or would make the model wrong;
            the layer is named.
    """
    model = unwrapped(model)
    if isinstance(example_inputs, Tensor):
        example_inputs = example_inputs[:1]
    unknown = [name for name in tracing if name not in _TRACING]
    if unknown:
        raise InputError(
            f"torch-pruning's tracing takes no {unknown[0]!r}; allowed: {', '.join(_TRACING)}"
            f"{did_you_mean(unknown[0], _TRACING)}"
        )
    return explained(history, model, example_inputs, Known().graph(model, example_inputs), tracing=tracing)


def explained(
    history: History,
    model: nn.Module,
    example_inputs: Inputs,
    graph: Graph,
    *,
    tracing: Mapping[str, Any] | None = None,
    pruned: nn.Module | None = None,
) -> Plan:
    """Return the plan of a history, as `plan_from_torch_pruning` does, where the model's `graph` is at hand.

    `pruned` is the module that torch-pruning has made of `model`, with the same weights, where there is one.
    """
    dense = tensors_of(model)
    copy = apply(Plan(), model)
    redo(copy, history, example_inputs, translated(tracing or {}, model, copy))
    numbers = {name: tensor.detach().long() for name, tensor in tensors_of(copy).items()}
    theirs = {
        name: _positions(name, numbers[name], tensor.shape)
        for name, tensor in dense.items()
        if numbers[name].shape != tensor.shape
    }
    if not theirs:
        raise InputError(
            "torch-pruning has removed nothing: no layer could lose what was asked, or the history is empty"
        )
    removed = {
        (name, dim): _gone(left, dense[name].shape[dim]) for name, dims in theirs.items() for dim, left in dims.items()
    }
    graph, kept = units_left(graph, removed)
    plan = make_plan(model, graph, kept)
    _refuse_unexplained(plan, theirs, graph)
    if (fault := Exactness(model, example_inputs).fault(graph, kept, finished=plan)) is not None:
        raise InputError(f"what torch-pruning has removed makes the model wrong: {fault}")
    if pruned is None:
        pruned = copy
        for name, tensor in tensors_of(pruned).items():
            tensor.data = dense[name].detach().flatten()[numbers[name]]
    compare(pruned, apply(plan, model), plan, example_inputs)
    return plan


def _positions(name: str, numbers: Tensor, shape: torch.Size) -> dict[int, tuple[int, ...]]:
    """Return dimension -> positions that are left, of a tensor that once had `shape`; only narrowed dimensions.

    `numbers` holds, at every place that is left, the number that it once had.
    """
    if numbers.dim() != len(shape) or not numbers.numel():
        raise InputError(f"torch-pruning has left {name!r} with shape {tuple(numbers.shape)}; it was {tuple(shape)}")
    strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    left, expected = {}, torch.zeros_like(numbers)
    for dim, stride in enumerate(strides):
        along = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)[:, 0] // stride % shape[dim]
        expected += along.reshape(-1, *(1 for _ in shape[dim + 1 :])) * stride
        if len(along) < shape[dim]:
            left[dim] = tuple(along.tolist())
    if not torch.equal(expected, numbers) or any(list(kept) != sorted(set(kept)) for kept in left.values()):
        raise InputError(f"torch-pruning has rearranged {name!r}, which a plan cannot say")
    return left


def _gone(left: tuple[int, ...], size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(left)] = False
    return mask


def _refuse_unexplained(plan: Plan, theirs: Mapping[str, Mapping[int, tuple[int, ...]]], graph: Graph) -> None:
    """Raise InputError where the plan keeps other positions of a tensor than torch-pruning."""
    for name in dict.fromkeys([*theirs, *plan.kept]):
        found, planned = theirs.get(name, {}), plan.kept.get(name, {})
        for dim in sorted({*found, *planned}):
            if found.get(dim) != planned.get(dim):
                raise InputError(
                    f"torch-pruning has narrowed {name!r} (dimension {dim}) and would leave the model wrong: "
                    f"{_why(name, dim, theirs, graph)}; leave such layers out (prune.exclude, ignored_layers)"
                )


def _why(name: str, dim: int, theirs: Mapping[str, Mapping[int, tuple[int, ...]]], graph: Graph) -> str:
    """Return what stands against narrowing a tensor as torch-pruning did."""
    for group in graph.groups:
        for part in group.slices:
            if (part.tensor, part.dim) != (name, dim):
                continue
            gone = ~torch.isin(part.positions, torch.tensor(theirs.get(name, {}).get(dim, ()))).any(2)
            for other in group.slices:
                left = theirs.get(other.tensor, {}).get(other.dim)
                if left is None or bool(torch.isin(other.positions[gone], torch.tensor(left)).any()):
                    return f"{other.tensor!r} depends on the same width and has not lost the same units"
    layer = layer_of(name)
    skipped = (skip for skip in graph.skipped if skip.layer.partition(":")[0] == layer)
    skip = next(skipped, None)
    return f"{layer} must stay whole" if skip is None else f"{skip.layer} must stay whole ({skip.reason})"


def compare(theirs: nn.Module, ours: nn.Module, plan: Plan, example_inputs: Inputs) -> None:
    """Raise CompressError where torch-pruning's module is another than the planned one of the same weights.

    The numbers beside the tensors, which torch-pruning leaves to its user, are set in `theirs` first.
    """
    mine, found = tensors_of(ours), tensors_of(theirs)
    different = [name for name in mine if name not in found or not torch.equal(mine[name], found[name])]
    different += [name for name in found if name not in mine]
    if different:
        names = ", ".join(different)
        raise CompressError(
            f"torch-pruning's module has other weights than the plan's: {names}; please report the model"
        )
    for name, module in ours.named_modules():
        twin = theirs.get_submodule(name)
        for attribute, value in plan.attributes.get(name, {}).items():
            setattr(twin, attribute, copy.copy(value))
        if isinstance(module, NarrowAttention) and isinstance(twin, nn.MultiheadAttention):
            NarrowAttention.free(twin)
            setattr(twin, "scale", module.scale)  # noqa: B010  (its class was set above, which mypy does not see)
    try:
        with torch.no_grad(), evaluating(ours), evaluating(theirs):
            pairs = [list(tensors_in(call(module, example_inputs))) for module in (ours, theirs)]
    except Exception as error:  # a model's own code
        raise CompressError(f"torch-pruning's module does not run: {in_one_line(error)}") from error
    for one, other in zip(*pairs, strict=True):
        off = float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1e-6))
        if not off <= TOLERANCE:
            raise CompressError(f"torch-pruning's module gives other outputs than the planned one, off by {off:.1e}")
