"""The slimmable supernet of any model: every architecture runs on the first units of the shared weights.

Yu et al., "Slimmable Neural Networks", section 3, with shared batch-norm slices instead of one set for each width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compress.criteria.unit_criterion import Batches
from compress.graph.attention import NarrowAttention
from compress.graph.graph import Graph, evaluate
from compress.graph.watch import holds_scale
from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.channels.choices import blocks_dropped, units_kept
from spaces.channels.cuts import Part, Units, make_cuts
from spaces.channels.sorting import sort_units
from spaces.supernet import Supernet

if TYPE_CHECKING:
    from spaces.channels.space import ChannelSpace


class ChannelSupernet(Supernet):
    """The whole model as `network`, run on views of its tensors; the widest architecture is active at first.

    A shared weight has zero gradients where the active architecture does not reach, so weight decay and momentum act
    there all the same; weights of blocks that are left out have none.
    """

    space: ChannelSpace

    def __init__(self, space: ChannelSpace, task: Task, network: nn.Module | None = None) -> None:
        """`network` is the whole model, to be used as it is; None: a copy of the space's initial one."""
        super().__init__(space, task)
        graph = space.base(task).graph
        decided = [name for width in space.widths for name in width.groups]
        self.network = copy.deepcopy(space.initial_model(task)).train() if network is None else network
        self._stores = _stores(self.network)
        self._cuts = make_cuts(graph, decided, self.network)
        self._attributes = _attributes(self.network, graph, decided)
        self._whole = graph.widths()
        self._narrow: list[tuple[dict[str, Any], str, Part]] = []
        self._attention: list[nn.Module] = []
        self.activate(space.widest())

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs (N, num_outputs) of the active architecture for images (N, C, H, W)."""
        with self._narrowed():
            outputs: Tensor = self.network(images)
        return outputs

    @contextmanager
    def _narrowed(self) -> Iterator[None]:
        """Let the modules of the network see the active parts of their tensors.

        Part of a running statistic is a view, which they update in place, or a copy, which is written back.
        torch's attention layers of which parts are seen compute as they do when cut out.
        """
        whole = [store[leaf] for store, leaf, _ in self._narrow]
        try:
            for (store, leaf, part), tensor in zip(self._narrow, whole, strict=True):
                store[leaf] = part.of(tensor)
            with NarrowAttention.standing_in(self._attention):
                yield
            for (store, leaf, part), tensor in zip(self._narrow, whole, strict=True):
                if self.training and part.picks and not isinstance(tensor, nn.Parameter):
                    part.write_back(tensor, store[leaf])
        finally:
            for (store, leaf, _), tensor in zip(self._narrow, whole, strict=True):
                store[leaf] = tensor

    def sort_units(self, criterion: str = "magnitude", batches: Batches | None = None) -> None:
        """Reorder the units of every width once, the best by `criterion` first; the whole model computes the same.

        Call it before an optimizer keeps state of the weights. `batches` yields samples for criteria that
        need data.
        """
        assert self.active is not None
        self._route(self._whole, ())
        try:
            ranking = self.space.ranking(criterion, batches, self.network, self.task)
            sort_units(self.network, self.space.base(self.task).graph, ranking)
        finally:
            self._activate(self.active)

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of `arch`'s stand-alone network out of the shared weights."""
        parts = self._parts(arch)
        gone = self._gone(arch)
        return {
            name: parts[name].of(tensor) if name in parts else tensor
            for name, tensor in self.network.state_dict().items()
            if not name.startswith(gone)
        }

    def _activate(self, arch: Architecture) -> None:
        self._route(self._units(arch), blocks_dropped(self.space.stages, arch))
        parts = self._parts(arch)
        self._narrow = [(*self._stores[name], part) for name, part in parts.items()]
        self._attention = [
            module
            for prefix, module in self.network.named_modules()
            if isinstance(module, nn.MultiheadAttention) and any(name.startswith(f"{prefix}.") for name in parts)
        ]

    def _route(self, units: Units, dropped: tuple[str, ...]) -> None:
        """Set the attributes that follow widths, and take blocks out of or into the path."""
        for block in (block for stage in self.space.stages for block in stage.blocks):
            _leave_out(self.network.get_submodule(block), block in dropped)
        for module, attribute, value in self._attributes:
            setattr(module, attribute, value(units))

    def _gone(self, arch: Architecture) -> tuple[str, ...]:
        """Return what the names of tensors begin with that `arch` has not."""
        return tuple(f"{block}." for block in blocks_dropped(self.space.stages, arch))

    def _units(self, arch: Architecture) -> dict[str, int]:
        return {**self._whole, **units_kept(self.space.widths, arch)}

    def _parts(self, arch: Architecture) -> dict[str, Part]:
        """Return the parts of the tensors that `arch` uses but not whole."""
        units = self._units(arch)
        gone = self._gone(arch)
        found = ((name, cut.part(units)) for name, cut in self._cuts.items() if not name.startswith(gone))
        return {name: part for name, part in found if part is not None}


def _leave_out(block: nn.Module, out: bool) -> None:
    """Let a block hand on its first argument, or compute again; its weights stay registered."""
    if out:
        block.forward = _first
    else:
        block.__dict__.pop("forward", None)


def _first(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _stores(network: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Return where every parameter and buffer is kept, by its names."""
    return {
        f"{prefix}.{leaf}".lstrip("."): (store, leaf)
        for prefix, module in network.named_modules()
        for store in (module._parameters, module._buffers)
        for leaf in store
    }


def _attributes(
    network: nn.Module, graph: Graph, decided: list[str]
) -> list[tuple[nn.Module, str, Callable[[Units], Any]]]:
    """Return the attributes of modules that follow a decided width, each with its value for given units."""
    found: list[tuple[nn.Module, str, Callable[[Units], Any]]] = []
    for name, attributes in graph.attributes.items():
        module = network.get_submodule(name)
        for attribute, formula in attributes.items():
            if attribute == "head_dim" and isinstance(module, nn.MultiheadAttention):
                continue  # its scale is by the whole head width, whatever part of it is active
            several = attribute == "normalized_shape"
            sizes: Any = formula if several else (formula,)
            if any(group in decided for size in sizes for _, names in size for group in names):
                found.append((module, attribute, _value(sizes, several)))
    for group in graph.groups:
        owner = network.get_submodule(group.name.split(":")[0].rpartition(".")[0])
        if group.kind == "head_dims" and group.name in decided and holds_scale(owner):
            found.append((owner, "fused_attn", _whole_only(group.name, group.size, owner.fused_attn)))
    return found


def _value(sizes: Any, several: bool) -> Callable[[Units], Any]:
    if several:
        return lambda units: tuple(evaluate(size, units) for size in sizes)
    return lambda units: evaluate(sizes[0], units)


def _whole_only(name: str, size: int, fused: Any) -> Callable[[Units], Any]:
    """Return the value of `fused_attn`: narrower heads keep the stored scale, which the fused path would not."""
    return lambda units: fused and units[name] == size
