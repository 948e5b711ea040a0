"""Weights that no member of an update uses stay what they are: no decay, no momentum.

Whole tensors have no gradient, and optimisers pass over them. Parts of a tensor have gradients of exactly 0, which
weight decay and momentum do not pass over; so they are put back after the optimiser's step, with its memory of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.sorted.network import NestedNetwork
from spaces.architecture import Architecture
from spaces.channels.cuts import Part


class Untouched:
    """What an update leaves alone of the weights of `network`; `note` it before the optimiser's step."""

    def __init__(self, network: NestedNetwork, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self._parameters = dict(network.network.named_parameters())
        self._kept: list[tuple[nn.Parameter, Tensor, Tensor, dict[str, Tensor]]] = []

    @torch.no_grad()
    def note(self, members: Iterable[Architecture]) -> None:
        """Remember the weights that none of `members` uses, of tensors that one uses, and the optimiser's of them."""
        used = [self.network.parts(arch) for arch in dict.fromkeys(members)]
        for name, parameter in self._parameters.items():
            parts = [parts.get(name) for parts, gone in used if not name.startswith(gone)]
            narrow = [part for part in parts if part is not None]
            if parameter.grad is not None and narrow and len(narrow) == len(parts):
                untouched = ~_used(narrow, parameter)
                state = {key: value.clone() for key, value in self._memory(parameter).items()}
                self._kept.append((parameter, untouched, parameter.detach().clone(), state))

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the weights that were noted, and the optimiser's memory of them, their values back."""
        for parameter, untouched, value, state in self._kept:
            parameter.copy_(torch.where(untouched, value, parameter))
            for key, memory in self._memory(parameter).items():
                before = state.get(key, 0.0)
                memory.copy_(torch.where(untouched, before, memory))
        self._kept.clear()

    def _memory(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the tensors that the optimiser keeps for each weight of `parameter`."""
        state = self.optimizer.state.get(parameter, {})
        return {
            str(key): value
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }


def _used(parts: list[Part], tensor: Tensor) -> Tensor:
    """Return a mask of the shape of `tensor`, True where one of `parts` is."""
    found = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
    for part in parts:
        if not part.picks:  # one box from the first position of every dimension on
            found[tuple(map(slice, part.shape))] = True
            continue
        inside = torch.ones((), dtype=torch.bool, device=tensor.device)
        for dimension in (*part.views, *part.picks):
            kept = torch.zeros(dimension.length, dtype=torch.bool, device=tensor.device)
            if dimension.step:
                kept[: dimension.kept(part.units)] = True
            else:
                kept[dimension.index(part.units, tensor.device)] = True
            inside = inside & kept.view(-1, *[1] * (tensor.dim() - dimension.dim - 1))
        found |= inside
    return found
