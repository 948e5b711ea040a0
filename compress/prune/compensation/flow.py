"""Where the output of a layer goes: through rearrangements and scales into a residual sum, or into a whole block.

The output y of a layer is followed, operation by operation, as long as every element of it goes to one place and is
only scaled and shifted by constants (views, permutations, window shifts, crops, batch norms in evaluation, layer
scales). It *ends* where it is added to something else, meets an activation, or enters a block that is looked at. So
what is missing in the sum can be said in terms of y, whatever the layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from compress.core.tensors import tensors_in
from compress.criteria.consumers import Reader, readers

_LAYOUT = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "squeeze", "unsqueeze", "clone",
    "contiguous", "detach", "alias", "roll", "flip", "slice", "reshape", "constant_pad_nd",
))  # fmt: skip
_NORMS = frozenset((
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm",
))  # fmt: skip
_ACTIVATIONS = frozenset((
    "relu", "gelu", "silu", "hardswish", "hardtanh", "hardsigmoid", "leaky_relu", "elu", "sigmoid", "tanh", "mish",
    "clamp", "clamp_min", "softplus",
))  # fmt: skip


@dataclass(frozen=True)
class Trail:
    """A tensor that holds the output of `layer`: `places` says which element of it each element is (None: the same).

    `scale`, of its shape, is what it was multiplied by. `ended`: it is in a sum by now, or activated by `acts`.
    """

    layer: str
    shape: torch.Size
    places: Tensor | None = None
    scale: Tensor | None = None
    ended: bool = False
    acts: tuple[str, ...] = ()

    def found_at(self, shape: torch.Size, wanted: Tensor) -> Tensor:
        """Return where in a tensor of `shape`, counted element by element, elements of the output lie; -1: nowhere."""
        if self.places is None:
            return wanted
        inverse = wanted.new_full((self.shape.numel(),), -1)
        there = self.places.flatten()
        real = there >= 0
        inverse[there[real]] = torch.arange(shape.numel(), device=wanted.device)[real]
        return inverse[wanted]


@dataclass
class Ways:
    """What one run tells of a model.

    Attributes:
        order: the layers that read something, as they run.
        calls: how often each runs.
        sums: layer -> what multiplies its output on the way into the residual sum that it ends in; (channels,).
        entries: block -> (the layer whose output, summed or not, enters it, the activations between).
        exits: block -> the same of what leaves it.
        into: layer -> what multiplies its output on the way to where it ends before a block; (channels,).
    """

    order: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    sums: dict[str, Tensor] = field(default_factory=dict)
    entries: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    exits: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    into: dict[str, Tensor] = field(default_factory=dict)


OnOutput = Callable[[str, Reader, Tensor, Tensor], None]
OnEnding = Callable[[str, str, Tensor, Trail], None]


class Flow(TorchDispatchMode):
    """Follows the outputs of layers while a model runs in evaluation mode.

    Args:
        model: what is run, or what that is part of.
        blocks: modules whose entry and exit are looked at.
        follow: the layers that are followed; None: all that read something.
        on_output: called with (name, layer, input, output) when a followed layer has run.
        on_ending: called with (name, how, tensor, trail) where an output ends: as `sum`, `act` or `entry`.
        scales: keep account of scales (for a small batch: it takes a tensor for every tensor that is followed).
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Collection[str] = (),
        follow: Collection[str] | None = None,
        on_output: OnOutput | None = None,
        on_ending: OnEnding | None = None,
        scales: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.blocks, self.scales = model, blocks, scales
        self.layers = readers(model)
        self.follow = self.layers.keys() if follow is None else follow
        self.on_output, self.on_ending = on_output, on_ending
        self.ways = Ways()
        self.trails = WeakTensorKeyDictionary()
        self.constants = WeakTensorKeyDictionary()
        self.last = ""
        self._ended: set[str] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        """Begin to look."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            self.constants[tensor] = True
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._ran(name)))
        for name in self.blocks:
            block = self.model.get_submodule(name)
            self._handles.append(block.register_forward_pre_hook(self._entered(name), prepend=True))
            self._handles.append(block.register_forward_hook(self._left(name)))
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __exit__(self, *error: Any) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Forget the tensors of an earlier run."""
        self.trails = WeakTensorKeyDictionary()
        self._ended.clear()
        self.last = ""

    def _ran(self, name: str) -> Any:
        def hook(layer: Any, args: Any, output: Tensor) -> None:
            self.ways.calls[name] += 1
            if self.ways.calls[name] == 1:
                self.ways.order.append(name)
            self.last = name
            if name not in self.follow or not isinstance(output, Tensor):
                return
            with _disable_current_modes():
                if self.on_output is not None:
                    self.on_output(name, layer, args[0], output)
                scale = torch.ones_like(output) if self.scales else None
            self.trails[output] = (Trail(name, output.shape, scale=scale),)

        return hook

    def _entered(self, name: str) -> Any:
        def hook(block: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], Tensor):
                with _disable_current_modes():
                    self._end(args[0], "entry")
                for trail in self.trails.get(args[0], ()):
                    if trail.ended:
                        self.ways.entries[name] = trail.layer, trail.acts

        return hook

    def _left(self, name: str) -> Any:
        def hook(block: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                for trail in self.trails.get(output, ()):
                    if trail.ended:
                        self.ways.exits[name] = trail.layer, trail.acts

        return hook

    def _end(self, tensor: Tensor, how: str) -> None:
        """Let the output of the layer that has run last end in `tensor`, if that holds it."""
        kept: list[Trail] = []
        for trail in self.trails.get(tensor, ()):
            if trail.ended:
                kept.append(trail)
            elif trail.layer == self.last and trail.layer not in self._ended:
                self._ended.add(trail.layer)
                scale = _by_channel(trail, self.layers[trail.layer])
                if scale is not None:
                    (self.ways.sums if how == "sum" else self.ways.into)[trail.layer] = scale
                if self.on_ending is not None:
                    self.on_ending(trail.layer, how, tensor, trail)
                kept = [replace(trail, places=None, scale=None, ended=True)]
            elif how == "entry":
                kept.append(trail)
        self.trails[tensor] = tuple(kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        if operands and all(tensor in self.constants for tensor in operands):
            out = func(*args, **kwargs)
            for tensor in tensors_in(out):
                self.constants[tensor] = True
            return out
        held = [tensor for tensor in operands if self.trails.get(tensor)]
        if not held:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        plain = name.removesuffix("_")
        if plain in _ACTIVATIONS and args and args[0] is held[0]:
            self._end(args[0], "act")
        before = tuple(self.trails[tensor] for tensor in held)
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            self.trails.pop(tensor, None)
        first = next(tensors_in(out), None)
        if first is not None and (isinstance(out, Tensor) or plain in _NORMS):
            self._pass_on(plain, func, args, kwargs, held, before, first)
        return out

    def _pass_on(
        self, name: str, func: Any, args: Any, kwargs: Any, held: list[Tensor], before: tuple[Any, ...], out: Tensor
    ) -> None:
        """Give the result of an operation the trails of its operands, as far as they go on."""
        trails: tuple[Trail, ...] = before[0]
        if name in _ACTIVATIONS:
            self.trails[out] = tuple(replace(trail, acts=(*trail.acts, name)) for trail in trails if trail.ended)
        elif name in _LAYOUT and args[0] is held[0]:
            self.trails[out] = tuple(_laid_out(trail, func, args, kwargs) for trail in trails)
        elif name in _NORMS and args[0] is held[0] and (name.endswith("no_training") or not args[5]):
            if all(each is None or each in self.constants for each in args[1:5]):
                self.trails[out] = tuple(_scaled(trail, _factor(args, out)) for trail in trails if not trail.ended)
        elif name in ("add", "mul", "sub") and len(args) == 2 and not kwargs:
            self._combined(name, args, held, before, out)

    def _combined(self, name: str, args: Any, held: list[Tensor], before: tuple[Any, ...], out: Tensor) -> None:
        mine = args[0] if args[0] is held[0] else args[1]
        other = args[1] if mine is args[0] else args[0]
        if out.shape != mine.shape:
            return
        if not isinstance(other, Tensor) or other in self.constants:
            if name == "mul":
                self.trails[out] = tuple(_scaled(trail, other) for trail in before[0])
            elif name == "add" or mine is args[0]:
                self.trails[out] = before[0]
        elif name == "add" and other.shape == mine.shape:
            fresh = [trail for trails in before for trail in trails if not trail.ended]
            self.trails[out] = tuple(fresh)
            self._end(out, "sum")


def _laid_out(trail: Trail, func: Any, args: Any, kwargs: Any) -> Trail:
    if trail.ended:
        return trail
    tensor = args[0]
    places = trail.places
    if places is None:
        places = torch.arange(trail.shape.numel(), device=tensor.device).reshape(tensor.shape)
    padded = func.overloadpacket.__name__ == "constant_pad_nd"
    rest = (*args[1:2], -1) if padded else args[1:]
    scale = trail.scale
    if scale is not None:
        scale = func(scale, *((*args[1:2], 0) if padded else args[1:]), **kwargs)
    return replace(trail, places=func(places, *rest, **kwargs), scale=scale)


def _scaled(trail: Trail, by: Any) -> Trail:
    return trail if trail.scale is None or trail.ended else replace(trail, scale=trail.scale * by)


def _factor(args: Any, out: Tensor) -> Tensor:
    """Return what a batch norm in evaluation multiplies by, in a shape that goes with its output."""
    factor = (args[4] + args[-1]).rsqrt()
    factor = factor if args[1] is None else factor * args[1]
    shaped: Tensor = factor.reshape([-1 if dim == 1 else 1 for dim in range(out.dim())])
    return shaped


def _by_channel(trail: Trail, layer: Reader) -> Tensor | None:
    """Return by what each channel of a layer's output is multiplied; None where that is 0 or differs within one."""
    if trail.scale is None:
        return None
    flat = trail.scale.new_zeros(trail.shape.numel())
    seen = torch.ones_like(flat, dtype=torch.bool)
    if trail.places is None:
        flat = trail.scale.flatten()
    else:
        there = trail.places.flatten()
        real = there >= 0
        seen = torch.zeros_like(seen)
        seen[there[real]] = True
        flat[there[real]] = trail.scale.flatten()[real]
    dim = -1 if isinstance(layer, nn.Linear) else 1
    by_channel = flat.reshape(trail.shape).movedim(dim, 0).flatten(1).double()
    there = seen.reshape(trail.shape).movedim(dim, 0).flatten(1)
    count = there.sum(1)
    if bool((count == 0).any()):
        return None
    mean = (by_channel * there).sum(1) / count
    spread = ((by_channel - mean[:, None]) * there).abs().amax(1)
    if bool((spread > 1e-5 * mean.abs()).any()) or bool((mean.abs() < 1e-12).any()):
        return None
    return mean


def ways_of(model: nn.Module, blocks: Collection[str], run: Callable[[nn.Module], Any]) -> Ways:
    """Return where the outputs of all layers of a model go; `run` calls it with a small batch."""
    flow = Flow(model, blocks, scales=True)
    with torch.no_grad(), flow:
        run(model)
    return flow.ways
