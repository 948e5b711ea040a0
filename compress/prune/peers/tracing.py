"""torch-pruning at work: it follows a model, and does a pruning history again."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import InputError, did_you_mean, in_one_line
from compress.core.tensors import Inputs

History = Sequence[tuple[str, bool, Sequence[int]] | list[Any]]
"""What `DependencyGraph.pruning_history()` gives: layer, whether its outputs were pruned (else its inputs), indices."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def dependencies(model: nn.Module, example_inputs: Inputs, tracing: Mapping[str, Any]) -> Any:
    """Return torch-pruning's dependency graph of `model`, whose parameters take gradients from now on.

    Raises:
        InputError: the extra is not installed, or torch-pruning cannot follow the model.
    """
    tp = torch_pruning()
    with following(model):
        return tp.DependencyGraph().build_dependency(model, as_arguments(example_inputs), verbose=False, **tracing)


def torch_pruning() -> Any:
    """Return the package torch_pruning; InputError where the extra is not installed."""
    try:
        import torch_pruning as package
    except ImportError as error:
        raise InputError("torch-pruning needs the extra: pip install 'compress[torch-pruning]'") from error
    return package


@contextmanager
def following(model: nn.Module) -> Iterator[None]:
    """Let torch-pruning follow `model` inside the block; what it fails with is one sentence."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:  # what a model's code and torch-pruning's raise on what they did not expect
        raise InputError(
            f"torch-pruning cannot prune this model: {in_one_line(error)}; leave out the layers that it does not "
            "understand, with prune.exclude"
        ) from error


def as_arguments(inputs: Inputs) -> tuple[Any, ...] | dict[str, Any]:
    """Return inputs so that torch-pruning calls the model as we do: it unpacks a tensor along its first dimension."""
    return inputs if isinstance(inputs, tuple | dict) else (inputs,)


def redo(model: nn.Module, history: History, example_inputs: Inputs, tracing: Mapping[str, Any]) -> None:
    """Do a history again on `model`, whose tensors (parameters and buffers) become numbers of their own positions."""
    graph = dependencies(model, example_inputs, tracing)
    for tensor in tensors_of(model).values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).reshape(tensor.shape)
    for place, (name, is_out, indices) in enumerate(_validated(history)):
        where = f"entry {place} of the pruning history"
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            near = did_you_mean(name, [each for each, _ in model.named_modules()])
            raise InputError(f"{where} names layer {name!r}, which the model does not have{near}") from None
        if layer not in graph.module2node:
            raise InputError(f"{where} names layer {name!r}, which torch-pruning does not find in the model's flow")
        width = (graph.get_out_channels if is_out else graph.get_in_channels)(layer)
        if not all(0 <= index < (width or 0) for index in indices):
            side = "outputs" if is_out else "inputs"
            raise InputError(f"{where} removes {side} up to {max(indices)} of {name!r}, which has {width} then")
        pruner = graph.get_pruner_of_module(layer)
        function = pruner.prune_out_channels if is_out else pruner.prune_in_channels
        with following(model):
            graph.get_pruning_group(layer, function, indices).prune(record_history=False)


def _validated(history: History) -> list[tuple[str, bool, list[int]]]:
    try:
        return [(str(name), bool(is_out), list(map(operator.index, indices))) for name, is_out, indices in history]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"this is not a pruning history: {in_one_line(error)}; it is a list of (layer, whether outputs, indices), "
            "as DependencyGraph.pruning_history() gives it"
        ) from error


def translated(tracing: Mapping[str, Any], model: nn.Module, copy: nn.Module) -> dict[str, Any]:
    """Return `tracing` with the modules and parameters of `copy` in the places of those of `model`."""
    twins: dict[int, Any] = {id(module): copy.get_submodule(name) for name, module in model.named_modules()}
    twins |= {id(parameter): copy.get_parameter(name) for name, parameter in model.named_parameters()}

    def twin(value: Any) -> Any:
        if id(value) in twins:
            return twins[id(value)]
        if isinstance(value, Mapping):
            return {twin(key): twin(each) for key, each in value.items()}
        return [twin(each) for each in value] if isinstance(value, list) else value

    given = dict(tracing)
    if given.get("unwrapped_parameters") is not None:  # a dictionary in its documentation, pairs in its code
        pairs = given["unwrapped_parameters"]
        pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
        given["unwrapped_parameters"] = [(twin(parameter), dim) for parameter, dim in pairs]
    return {key: value if key == "unwrapped_parameters" else twin(value) for key, value in given.items()}
