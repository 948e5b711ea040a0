"""A network and all its nested sub-networks: views of one set of weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compress.sorted.space import NestedSpace
from spaces.architecture import Architecture, Choice
from spaces.channels.cuts import Part
from spaces.channels.supernet import ChannelSupernet


class NestedNetwork(ChannelSupernet):
    """The given model, in place, as `network`; `activate` makes `forward` run a sub-network of it."""

    space: NestedSpace

    def __init__(self, space: NestedSpace) -> None:
        self._known: dict[Architecture, dict[str, Part]] = {}
        network = space.initial_model(space.default_task)
        super().__init__(space, space.default_task, network)
        self.training = network.training

    @property
    def full(self) -> Architecture:
        """The whole network."""
        return self.space.widest()

    def cost(self, arch: Mapping[str, Choice]) -> dict[str, int]:
        """Return `{"params", "macs"}` of one image, by arithmetic."""
        return self.space.cost(arch)

    def extract(self, arch: Mapping[str, Choice] | None = None) -> nn.Module:
        """Return a stand-alone copy of `arch` (None: the active one) that computes the same, in the same mode."""
        assert self.active is not None
        chosen = self.active if arch is None else self.space.check(arch)
        self._route(self._whole, ())  # what is copied from is the whole network, whatever is active
        try:
            module = self.space.build(chosen)
        finally:
            self._activate(self.active)
        module.load_state_dict(self.inherited(chosen))
        return module.train(self.training)

    def parts(self, arch: Architecture) -> tuple[dict[str, Part], tuple[str, ...]]:
        """Return the parts of the tensors that `arch` uses but not whole, and the prefixes of those it does not use."""
        return self._parts(arch), self._gone(arch)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the given model wants to be left out of weight decay, for timm's optimisers."""
        names = getattr(self.network, "no_weight_decay", set)
        return {f"network.{name}" for name in names()}

    def _parts(self, arch: Architecture) -> dict[str, Part]:
        if arch not in self._known:
            self._known[arch] = super()._parts(arch)
        return self._known[arch]
