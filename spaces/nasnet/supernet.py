"""The NASNet supernet: every place keeps all operations that any genotype may put there.

Weights are shared per cell, block, slot and operation, whatever state it reads and at whatever stride, with one set of
weights per width of that state (C, or 2C after a concatenation, or the stem's). A layer that reads a cell's output has
weights per state of that cell and uses those of the concatenated ones, as in ENAS (Pham et al. 2018).
"""

from __future__ import annotations

from torch import Tensor, nn

from evaluators.tasks import Task
from spaces.architecture import Architecture
from spaces.nasnet.genotype import BLOCKS, STATES, Genotype, Kind
from spaces.nasnet.network import NASNet
from spaces.nasnet.operations import SameConv2d, SamePool, has_weights, initialize
from spaces.nasnet.options import NASNetConfig
from spaces.nasnet.parts import Parts
from spaces.nasnet.per_state import PerState, PerStateConv, PerStateLinear
from spaces.nasnet.skeleton import Site, Source, auxiliary_position, auxiliary_size, sites
from spaces.space import Space
from spaces.supernet import Supernet


class AllParts(Parts):
    """Makes the shared modules: as `Parts`, but layers that read a cell's output have weights for every state."""

    def conv(self, source: Source, channels: int) -> nn.Module:
        """Return a 1x1 convolution of any of the states of `source`."""
        return PerStateConv(source.states, source.each, channels)

    def linear(self, source: Source, features: int) -> nn.Module:
        """Return a linear layer on any of the states of `source`."""
        return PerStateLinear(source.states, source.each, features)


class SharedCell(nn.Module):
    """All modules that any cell at `site` may use."""

    def __init__(self, site: Site, first: Source, second: Source, parts: AllParts) -> None:
        super().__init__()
        config, channels = parts.config, site.channels
        self.prepare0 = parts.prepare(site, 0, first)
        self.prepare1 = None if site.first else parts.prepare(site, 1, second)
        self.operations = nn.ModuleDict()
        self.fits = nn.ModuleDict()
        inputs = {channels, second.channels if site.first else channels}
        wide = {2 * channels} if "concat" in config.combines else set()
        for block in range(BLOCKS):
            for width in sorted(inputs | wide if block else inputs):
                stride = site.stride if width in inputs else 1
                self._add_operations(site, block, width, stride, parts)
        for state in _kept(config, site.kind):
            self._add_fit(site, state, second.channels if state == 1 and site.first else channels, parts)

    def _add_operations(self, site: Site, block: int, width: int, stride: int, parts: AllParts) -> None:
        for name in parts.config.operations:
            if has_weights(name, width, site.channels, stride):
                for slot in (1, 2):
                    operation = parts.operation(site, block, slot, name, width, stride)
                    self.operations[_key(block, slot, name, width)] = operation

    def _add_fit(self, site: Site, state: int, width: int, parts: AllParts) -> None:
        if state >= 2:
            if "concat" in parts.config.combines:
                self.fits[f"state{state}"] = parts.fit(site, state, 2 * site.channels, halve=False)
        elif site.stride == 2 or width != site.channels:
            self.fits[f"state{state}"] = parts.fit(site, state, width, site.stride == 2)


class SharedParts(Parts):
    """Hands out the modules of a supernet, set to the states and strides that they are asked for."""

    def __init__(self, supernet: NASNetSupernet) -> None:
        super().__init__(supernet.config)
        self.supernet = supernet

    def stem(self, in_chans: int) -> nn.Module:
        """Return the one stem."""
        return self.supernet.stem

    def prepare(self, site: Site, state: int, source: Source) -> nn.Module:
        """Return the shared module, reading the states of `source`."""
        cell = self.supernet.cell(site)
        return _reading(cell.prepare1 if state == 1 else cell.prepare0, source)

    def operation(self, site: Site, block: int, slot: int, name: str, in_channels: int, stride: int) -> nn.Module:
        """Return the shared operation at `stride`; one without weights is made on the spot."""
        if not has_weights(name, in_channels, site.channels, stride):
            return super().operation(site, block, slot, name, in_channels, stride)
        operation = self.supernet.cell(site).operations[_key(block, slot, name, in_channels)]
        for module in operation.modules() if site.stride == 2 else ():
            if isinstance(module, SameConv2d | SamePool):
                module.set_stride(stride)
        return operation

    def fit(self, site: Site, state: int, in_channels: int, halve: bool) -> nn.Module:
        """Return the shared module."""
        return self.supernet.cell(site).fits[f"state{state}"]

    def auxiliary_head(self, source: Source, size: int, num_classes: int) -> nn.Module:
        """Return the shared head, reading the states of `source`."""
        return _reading(self.supernet.auxiliary_head, source)

    def classifier(self, source: Source, num_classes: int) -> nn.Module:
        """Return the shared linear layer, reading the states of `source`."""
        return _reading(self.supernet.classifier, source)


class NASNetSupernet(Supernet):
    """Shared weights of all genotypes; the active one is a `NASNet` put together from them."""

    auxiliary_weight = NASNet.auxiliary_weight

    def __init__(self, space: Space, config: NASNetConfig, task: Task) -> None:
        super().__init__(space, task)
        self.config = config
        self._progress = 0.0
        self._network: NASNet | None = None
        parts = AllParts(config)
        maps = [Source((0,), config.first_channels)]
        maps += [Source(_kept(config, site.kind), site.channels) for site in sites(config)]
        self.stem = parts.stem(task.in_chans)
        self.cells = nn.ModuleDict()
        for site in sites(config):
            first, second = site.inputs
            self.cells[site.name] = SharedCell(site, maps[first], maps[second], parts)
        self.auxiliary_head: nn.Module | None = None
        if config.auxiliary:
            size = auxiliary_size(config, task.img_size)
            self.auxiliary_head = parts.auxiliary_head(maps[auxiliary_position(config)], size, task.num_outputs)
        self.classifier = parts.classifier(maps[-1], task.num_outputs)
        initialize(self)

    def cell(self, site: Site) -> SharedCell:
        """Return the shared modules at `site`."""
        cell = self.cells[site.name]
        assert isinstance(cell, SharedCell)
        return cell

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]  # auxiliary head
        """Return what `NASNet` returns for the active architecture."""
        if self._network is None:
            raise ValueError("activate an architecture first")
        return self._network(images)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> NASNetSupernet:
        """Set the mode of the shared modules and of the active network."""
        super().train(mode)
        if self._network is not None:
            self._network.train(mode)
        return self

    def set_training_progress(self, fraction: float) -> None:
        """Say which share of training is over, as `NASNet` takes it."""
        self._progress = fraction
        if self._network is not None:
            self._network.set_training_progress(fraction)

    def inherited(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the state of the stand-alone network of `arch`, mostly views of the shared tensors."""
        state: dict[str, Tensor] = {}
        for name, module in self._assembled(arch).named_modules():
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if isinstance(module, PerState):
                tensors = [("weight", module.weight), *(pair for pair in tensors if pair[0] == "bias")]
            state |= {f"{name}.{key}": tensor.detach() for key, tensor in tensors}
        if self.active is not None:  # shared modules were set to what `arch` asks of them
            self._activate(self.active)
        return state

    def _activate(self, arch: Architecture) -> None:
        network = self._assembled(arch)
        network.set_training_progress(self._progress)
        if not self.training:
            network.eval()  # what is new in it starts out in training mode
        object.__setattr__(self, "_network", network)  # no submodule: it owns no weights

    def _assembled(self, arch: Architecture) -> NASNet:
        genotype = Genotype.from_choices(arch, self.config.concat_lists)
        return NASNet(self.config, genotype, self.task, SharedParts(self))


def _kept(config: NASNetConfig, kind: Kind) -> tuple[int, ...]:
    """Return the states that a cell may concatenate."""
    return tuple(range(STATES)) if config.concat_lists is None else config.concat_lists[kind]


def _key(block: int, slot: int, name: str, width: int) -> str:
    return f"block{block}_op{slot}_{name}_from{width}"


def _reading(module: nn.Module | None, source: Source) -> nn.Module:
    """Return `module` with its layers set to the states of `source`."""
    assert module is not None
    for layer in module.modules():
        if isinstance(layer, PerState):
            layer.selected = source.states
    return module
