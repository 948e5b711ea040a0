"""The networks of a family: each member as a model of its own, out of the shared weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.core.batch_norm import norm_layers
from compress.core.errors import InputError
from compress.core.problems import validated
from compress.core.tensors import called
from compress.export.quick import export_quickly
from compress.picking.comparison import compare
from compress.picking.members import Member, Written
from compress.sorted.family import NORMS, WEIGHTS, Family
from compress.sorted.network import NestedNetwork
from compress.sorted.space import NestedSpace
from compress.transforms.narrow import Narrow
from spaces.channels.space import ChannelsConfig
from spaces.checkpoint_file import read_safetensors


@dataclass(frozen=True)
class Networks:
    """What the members of `family` are made of."""

    family: Family
    bundle: Bundle
    space: NestedSpace
    norms: Mapping[str, Tensor]

    @classmethod
    def open(cls, family: Family) -> Networks:
        """Read the shared weights; InputError where they are damaged or not those of the index."""
        folder = family.folder
        if family.space != NestedSpace.name:
            raise InputError(f"{folder}: members of space {family.space!r}; allowed: {NestedSpace.name}")
        bundle = Bundle.load(folder / WEIGHTS, key=str(folder))
        try:
            space = NestedSpace(bundle, validated(ChannelsConfig, dict(family.options)))
        except InputError as error:
            raise InputError(f"{folder}: the space of its members cannot be opened: {error.problems[0]}") from error
        return cls(family, bundle, space, read_safetensors(folder / NORMS, key=str(folder)))

    @cached_property
    def nested(self) -> NestedNetwork:
        """All members as parts of one network, in evaluation mode."""
        return NestedNetwork(self.space).eval()

    def member(self, place: int) -> Bundle:
        """Return a member as a bundle of its own: the base model and a plan, its weights and batch-norm statistics.

        Its outputs are compared with those of its part of the shared weights.

        Raises:
            InputError: the index is not about these weights.
            CompressError: the outputs differ.
        """
        member = self.family.members[place]
        arch = self._checked(member)
        module = self.nested.extract(arch).eval()
        images, task = self.bundle.example_inputs(2), self.bundle.task
        self.nested.activate(arch)
        with torch.no_grad():
            outputs, expected = (task.tensor(called(each, images)) for each in (module, self.nested))
        self.nested.activate(self.nested.full)  # its layers' sizes follow what is active, and plans read them
        compare(outputs, expected, f"member {place} is another network than its part of the whole")
        prefix = f"{place}."
        own = {name.removeprefix(prefix): value for name, value in self.norms.items() if name.startswith(prefix)}
        enter_statistics(module, own, f"{self.family.folder / NORMS}: the statistics of member {place}")
        plan = self.space.plan_of(arch)
        bundle = replace(self.bundle.transformed(Narrow(plan=plan), module), metrics=member.measured())
        costs = bundle.costs()
        if (costs["params"], costs["macs"]) != (member.params, member.macs):
            raise InputError(
                f"{self.family.folder}: member {place} has {costs['params']} params and {costs['macs']} MACs, "
                f"its index says {member.params} and {member.macs}: it is of other weights"
            )
        bundle.metrics |= costs
        return bundle

    def write(self, place: int, bundle: Bundle, path: Path) -> Written:
        """Write the ONNX file of a member to `path`; raises as `compress.export.quick.export_quickly` does."""
        found = export_quickly(bundle.model, bundle.example_inputs(2), path, bundle.task, bundle.inputs)
        return Written(found.bytes, found.parity_max_rel)

    def _checked(self, member: Member) -> Any:
        try:
            return self.space.check(member.arch)
        except InputError as error:
            raise InputError(f"{self.family.folder}: a member does not fit the weights: {error.problems[0]}") from error


@torch.no_grad()
def enter_statistics(module: nn.Module, statistics: Mapping[str, Tensor], what: str) -> None:
    """Give the batch norms of `module` other statistics; InputError, which says `what`, for another network's."""
    own = statistics_of(module)
    if {name: each.shape for name, each in statistics.items()} != {name: each.shape for name, each in own.items()}:
        raise InputError(f"{what} do not fit its network")
    for name, buffer in own.items():
        buffer.copy_(statistics[name])


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of the batch norms by name; the tensors are the module's own."""
    names = {each: name for name, each in module.named_modules()}
    return {
        f"{names[layer]}.{leaf}".lstrip("."): buffer
        for layer in norm_layers(module)
        for leaf, buffer in layer.named_buffers(recurse=False)
    }
