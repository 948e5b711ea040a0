"""torch-pruning's own pruners, told of a model what our width graph knows: heads, and layers that stay whole."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from compress.core.errors import InputError, did_you_mean
from compress.core.tensors import Inputs
from compress.graph.graph import Graph
from compress.prune.peers.tracing import as_arguments, following, torch_pruning
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task

Pruner = Literal["base", "bn_scale", "group_norm", "growing_reg"]
Importance = Literal["l1", "l2", "lamp", "fpgm", "bn_scale", "taylor", "hessian", "random"]
NEED_DATA: tuple[Importance, ...] = ("taylor", "hessian")

_PRUNERS: Mapping[Pruner, str] = {
    "base": "BasePruner",
    "bn_scale": "BNScalePruner",
    "group_norm": "GroupNormPruner",
    "growing_reg": "GrowingRegPruner",
}
_IMPORTANCES: Mapping[Importance, Callable[[Any], Any]] = {
    "l1": lambda known: known.GroupMagnitudeImportance(p=1),
    "l2": lambda known: known.GroupMagnitudeImportance(p=2),
    "lamp": lambda known: known.LAMPImportance(),
    "fpgm": lambda known: known.FPGMImportance(),
    "bn_scale": lambda known: known.BNScaleImportance(),
    "taylor": lambda known: known.GroupTaylorImportance(),
    "hessian": lambda known: known.GroupHessianImportance(),
    "random": lambda known: known.RandomImportance(),
}


def make_pruner(
    model: nn.Module,
    graph: Graph,
    example_inputs: Inputs,
    pruner: Pruner,
    importance: Importance,
    exclude: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Return a pruner of torch-pruning's for `model`, which it will change in place.

    Layers that `exclude` matches, and those whose outputs `graph` leaves whole, are told to it as ignored; so are
    parameters outside of layers whose last dimension is no width (tables of positions), which it would misunderstand.
    `options` are further arguments of its constructor.

    Raises:
        InputError: a glob matches nothing, or torch-pruning cannot follow the model.
    """
    tp = torch_pruning()
    modules = dict(model.named_modules())
    narrowed = {part.layer for group in graph.groups for part in group.slices if part.role == "out"}
    whole = [name for name, each in modules.items() if _has_width(each) and name not in narrowed]
    whole += excluded(model, exclude)
    heads = {
        modules[name]: g.size
        for g in graph.groups
        if g.kind == "heads"
        for name in g.layers
        if g.size > 1 and name in modules
    }
    ignored = [*(modules[name] for name in dict.fromkeys(whole)), *tables(model, graph)]
    with following(model):
        return getattr(tp.pruner, _PRUNERS[pruner])(
            model,
            as_arguments(example_inputs),
            importance=_IMPORTANCES[importance](tp.importance),
            ignored_layers=ignored,
            num_heads=heads,
            in_channel_groups={},  # by default these are dictionaries that all pruners of a process share
            out_channel_groups={},
            **options,
        )


def excluded(model: nn.Module, globs: Sequence[str]) -> list[str]:
    """Return the names of the modules that globs match; InputError where one matches nothing."""
    names = [name for name, _ in model.named_modules() if name]
    for glob in globs:
        if not fnmatch.filter(names, glob):
            near = did_you_mean(glob, names)
            raise InputError(f"prune.exclude: the pattern {glob!r} matches no layer; allowed: globs over layers{near}")
    return [name for glob in globs for name in fnmatch.filter(names, glob)]


def step(pruner: Any, importance: Importance, batches: Iterable[Batch], task: Task) -> None:
    """Let a pruner remove what it removes in one step; gradients are those of the mean loss on `batches`.

    Raises:
        InputError: torch-pruning cannot prune the model.
    """
    model = pruner.model
    if importance in NEED_DATA:
        model.zero_grad()
        with task.losing(model), torch.enable_grad():
            for batch in batches:
                if importance == "hessian":
                    _squares(pruner.importance, model, batch, task)
                else:
                    task.loss(task.forward(model, batch), batch).backward()
    with following(model):
        pruner.step()


def train(pruner: Any, batches: Iterable[Batch], task: Task, lr: float) -> None:
    """Train a pruner's model by its regulariser, with SGD (momentum 0.9), one update for each batch."""
    model = pruner.model
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    pruner.update_regularizer()
    for batch in batches:
        loss = task.loss(task.forward(model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        pruner.regularize(model)
        optimizer.step()
    model.eval()


def _squares(importance: Any, model: nn.Module, batch: Batch, task: Task) -> None:
    """Hand the gradients of each sample to an importance that squares them.

    torch-pruning 1.6.1 looks its sums up by name and keeps them by parameter, so those of the last sample are left.
    """
    for sample in batch.split(1):
        model.zero_grad()
        task.loss(task.forward(model, sample), sample).backward()
        importance.accumulate_grad(model)


def _has_width(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention))


def tables(model: nn.Module, graph: Graph) -> list[nn.Parameter]:
    """Return the parameters outside of torch's own layers whose last dimension is the width of no group of channels."""
    streams = {(part.tensor, part.dim) for g in graph.groups if g.kind == "channels" for part in g.slices}
    found = []
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            sizes = [dim for dim, size in enumerate(parameter.shape) if size > 1]
            if sizes and (f"{name}.{leaf}" if name else leaf, sizes[-1]) not in streams:
                found.append(parameter)
    return found
