"""The layers of a model that pass one tensor on from the one to the next: where its features can be had, and put in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compress.core.modes import run_once
from compress.core.tensors import Inputs


@dataclass(frozen=True)
class Link:
    """A layer that takes one tensor and gives one: its name, and the shapes of both.

    `reader` and `writer` are the innermost layers with a weight that take its input and that run last in it.
    """

    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    reader: str | None = None
    writer: str | None = None


@dataclass
class _Call:
    """One call of a module, and the calls inside it. A tensor changed in place counts as another one."""

    name: str
    module: nn.Module
    taken: tuple[int, int] | None
    given: tuple[int, int] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    inside: list[_Call] = field(default_factory=list)


def longest_chain(model: nn.Module, example_inputs: Inputs) -> list[Link]:
    """Return the chain of layers with the most weights, in the order of the passes; empty where there is none.

    A layer that is itself a chain is taken apart. The output of every link is the very tensor that the next one takes.
    """
    root, kept = _recorded(model, example_inputs)
    calls: dict[str, int] = {}
    for call in _all(root):
        calls[call.name] = calls.get(call.name, 0) + 1
    found = _best(root, {name for name, count in calls.items() if count == 1})
    del kept  # until here the tensors live, so that each has an identity of its own
    return [_link(call) for call in found]


def _link(call: _Call) -> Link:
    leaves = [leaf for leaf in [*_all(call), call] if isinstance(getattr(leaf.module, "weight", None), Tensor)]
    readers = [leaf.name for leaf in leaves if leaf.taken == call.taken]
    return Link(
        call.name, call.shapes[0], call.shapes[1], next(iter(readers), None), leaves[-1].name if leaves else None
    )


def has_matrix(module: nn.Module) -> bool:
    """Return whether a module multiplies by a matrix or kernel of its own."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _recorded(model: nn.Module, example_inputs: Inputs) -> tuple[_Call, list[Tensor]]:
    names = {module: name for name, module in model.named_modules()}
    root = _Call("", model, None)
    running, kept = [root], list[Tensor]()

    def entered(module: nn.Module, args: Any, named: Any) -> None:
        single = len(args) == 1 and isinstance(args[0], Tensor) and all(value is None for value in named.values())
        call = _Call(names[module], module, _identity(args[0]) if single else None)
        if single:
            kept.append(args[0])
            call.shapes = (tuple(args[0].shape),)
        running[-1].inside.append(call)
        running.append(call)

    def left(module: nn.Module, args: Any, output: Any) -> None:
        call = running.pop()
        if isinstance(output, Tensor):
            kept.append(output)
            call.given = _identity(output)
            call.shapes = (*call.shapes, tuple(output.shape))

    hooks = []
    for module in names:
        if module is not model:
            hooks.append(module.register_forward_pre_hook(entered, with_kwargs=True))
            hooks.append(module.register_forward_hook(left))
    run_once(model, example_inputs, hooks)
    return root, kept


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), tensor._version


def _all(call: _Call) -> Iterator[_Call]:
    for inner in call.inside:
        yield inner
        yield from _all(inner)


def _best(call: _Call, once: set[str]) -> list[_Call]:
    """Return the chain with the most weights right inside `call`, or deeper where that is but a single layer."""
    chains = [[part for link in run for part in _parts(link, once)] for run in _runs(call.inside, once)]
    best = max(chains, key=_weights, default=[])
    heavy = [link for link in best if has_matrix(link.module)]
    if len(heavy) == 1:
        deeper = _best(heavy[0], once)
        return deeper if len(deeper) > 1 else best
    return best


def _weights(chain: Sequence[_Call]) -> int:
    return sum(parameter.numel() for link in chain for parameter in link.module.parameters())


def _runs(calls: Sequence[_Call], once: set[str]) -> list[list[_Call]]:
    """Return the stretches of `calls` in which each takes what the one before gave."""
    runs: list[list[_Call]] = []
    for call in calls:
        if call.taken is None or call.given is None or call.name not in once:
            runs.append([])
        elif runs and runs[-1] and runs[-1][-1].given == call.taken:
            runs[-1].append(call)
        else:
            runs.append([call])
    return [run for run in runs if run]


def _parts(call: _Call, once: set[str]) -> list[_Call]:
    """Return the chain that `call` is from its input to its output, or `call` itself."""
    for run in _runs(call.inside, once):
        if len(run) == len(call.inside) and run[0].taken == call.taken and run[-1].given == call.given:
            return [part for link in run for part in _parts(link, once)]
    return [call]
