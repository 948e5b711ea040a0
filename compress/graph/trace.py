"""What a forward pass has shown: the axes of all named tensors, each operation in order, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compress.graph.axes import Dim

Dims = list[Dim]

# Operations that only rearrange: whether a reshape is a view or a copy depends on strides, so these are no landmarks.
LAYOUT = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "view_copy", "clone", "contiguous", "detach", "alias", "expand",
    "expand_copy", "permute", "permute_copy", "transpose", "t", "squeeze", "unsqueeze", "_to_copy", "as_strided",
    "as_strided_",
    "lift_fresh", "lift_fresh_copy", "reshape", "slice", "select", "split", "split_with_sizes", "unbind",
    "_local_scalar_dense", "unsafe_split", "unsafe_chunk", "chunk", "empty", "empty_like", "new_empty",
    "empty_strided", "new_empty_strided",
))  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """A matrix product or convolution: `constant` x the product of the sizes of `dims` multiply-accumulates."""

    layer: str
    constant: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Step:
    """One operation of the forward pass, in order: the dimensions of its tensors.

    `dynamic`: the shape of its result depends on values (what a mask picks, what suppression leaves).
    """

    name: str
    module: str
    inputs: tuple[tuple[Dim, ...], ...]
    outputs: tuple[tuple[Dim, ...], ...]
    dynamic: bool = False


@dataclass
class Trace:
    """What the forward passes showed: axes of all tensors with a name, costs, blocks, and attributes that were read.

    `outputs` names the parameters that act as the matrix of a product or as the kernel of a convolution, by themselves
    or after operations on parameters alone (views, gains, masks), with the dimensions that number its outputs. `counts`
    are attributes (layer, name) of torch's own layers that are the size of an axis: numbers of groups and features.
    `grouped` has, of each convolution in groups, what numbers the groups beside its channels within one of them.
    `steps` lists the operations of the forward pass in evaluation, `training_steps` those of the pass in training
    where it does what evaluation leaves out (auxiliary heads, noise of a given width). `caches` are attributes that
    were empty when they began, some of them for that, and may hold tensors after a pass.
    """

    tensors: dict[str, Dims] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    counts: dict[tuple[str, str], Dim] = field(default_factory=dict)
    grouped: list[tuple[Dim, Dim]] = field(default_factory=list)
    residual_blocks: list[str] = field(default_factory=list)
    attributes_read: set[tuple[str, str]] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    training_steps: list[Step] = field(default_factory=list)
    unscaled_attention: set[str] = field(default_factory=set)
    caches: dict[str, dict[str, Any]] = field(default_factory=dict)

    def seen(self, module: str) -> list[Dim]:
        """Return the dimensions of all tensors that `module` itself handled, in order, each once."""
        steps = [step for step in (*self.steps, *self.training_steps) if step.module == module]
        return list(dict.fromkeys(dim for step in steps for dims in (*step.inputs, *step.outputs) for dim in dims))

    def handed_on(self, module: str) -> list[Dim]:
        """Return the dimensions of what the layers within `module` were given, in order, each once."""
        prefix = f"{module}." if module else ""
        steps = (each for each in (*self.steps, *self.training_steps) if each.module.startswith(prefix))
        return list(dict.fromkeys(dim for each in steps for dims in each.inputs for dim in dims))
