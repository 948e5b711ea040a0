"""What models give for a batch, and what goes in and out of layers of theirs on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError, did_you_mean
from evaluators.datasets.batch import each_tensor, tensors_in
from evaluators.tasks import Task


@dataclass(frozen=True)
class Seen:
    """What one model gave for one batch.

    Attributes:
        tensor: the task's tensor of its outputs (one row for each sample), float32; empty where none stands for them.
        outputs: all that it returned.
        features: what the layers that were asked for returned, by name.
        received: what they were called with: their first argument.
    """

    tensor: Tensor
    outputs: Any
    features: Mapping[str, Any] = field(default_factory=dict)
    received: Mapping[str, Any] = field(default_factory=dict)


def layers_named(model: nn.Module, globs: Sequence[str], key: str, whose: str) -> list[str]:
    """Return the names of the layers of `model` that match one of `globs`, in the order in which they are defined.

    Lists and dictionaries of modules are none: they have no pass of their own to look at.

    Args:
        model: whose modules are named.
        globs: such as `layers.*.blocks.1`; `*` crosses dots.
        key: of the recipe, for messages.
        whose: "the model" or "teacher NAME", for messages.

    Raises:
        InputError: a glob matches nothing.
    """
    names = [name for name, each in model.named_modules() if name and _runs(each)]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise InputError(f"{key}: no layer of {whose} matches {glob!r}{did_you_mean(glob, names)}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _runs(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)


class Watched:
    """A model of which some layers are looked at while it runs."""

    def __init__(self, model: nn.Module, layers: Sequence[str], task: Task) -> None:
        """Get ready to look at `layers`, names of modules; `task` says which tensor stands for the outputs."""
        self.modules = {name: model.get_submodule(name) for name in dict.fromkeys(layers)}
        self.task = task
        self._copied: set[tuple[str, str]] | None = None

    def see(self, run: Callable[[], Any]) -> Seen:
        """Return what `run`, which runs the model once, gives, and what went through the layers (at their last call).

        A tensor that a later layer changes in place, as many ReLUs do, is kept as the layer gave it.

        Raises:
            InputError: a layer was not called.
            CompressError: what is changed in place is not always the same.
        """
        notes = {what: dict[str, _Noted]() for what in ("features", "received")}

        def note(what: str, name: str, value: Any) -> None:
            copied = self._copied is None or (what, name) in self._copied
            notes[what][name] = _Noted(value, copied)

        def entered(name: str) -> Callable[..., None]:
            return lambda _, args, named: note("received", name, [*args, *named.values(), None][0])

        def left(name: str) -> Callable[..., None]:
            return lambda _, args, output: note("features", name, output)

        handles = [
            handle
            for name, module in self.modules.items()
            for handle in (
                module.register_forward_pre_hook(entered(name), with_kwargs=True),
                module.register_forward_hook(left(name)),
            )
        ]
        try:
            outputs = run()
        finally:
            for handle in handles:
                handle.remove()
        if silent := [name for name in self.modules if name not in notes["features"]]:
            raise InputError(
                f"layer {silent[0]} takes no part in a pass through the model; name layers by a narrower pattern"
            )
        self._check(notes)
        kept = {what: {name: each.kept for name, each in found.items()} for what, found in notes.items()}
        tensor = self.task.tensor(outputs) if self.task.gives_tensor else torch.empty(0)
        return Seen(tensor, outputs, **kept)

    def _check(self, notes: Mapping[str, Mapping[str, _Noted]]) -> None:
        changed = {(what, name) for what, found in notes.items() for name, each in found.items() if each.changed}
        if self._copied is None:
            self._copied = changed
        elif surplus := sorted(changed - self._copied):
            raise CompressError(f"layer {surplus[0][1]}: another layer changes its {surplus[0][0]} only now and then")


class _Noted:
    """A value that went through a layer, as it was then."""

    def __init__(self, value: Any, copied: bool) -> None:
        self._value, self._copy = value, each_tensor(value, torch.clone) if copied else value
        self._given = [(tensor, tensor._version) for tensor in tensors_in(value)]

    @property
    def kept(self) -> Any:
        """The value, or the copy where it has been changed.

        A copy that nobody needs stays out of the graph: it would let the gradients of the pass that makes it add up in
        another order than those of all later ones, and so a resumed training end with other bits.
        """
        return self._copy if self.changed else self._value

    @property
    def changed(self) -> bool:
        """Whether somebody has changed the value in place since."""
        return any(tensor._version != version for tensor, version in self._given)
