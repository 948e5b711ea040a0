"""The two policies of N2N: one removes layers, the other shrinks those that are left.

Ashok et al., "N2N Learning" (ICLR 2018), section 3.2 and figure 2. Both read the layers of a model one after the other,
so they work on models of any length, and can be handed on from one teacher to another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.core.atomic import replacing
from compress.core.errors import InputError

FEATURES = 7
"""Length of a layer's state, see `spaces.n2n.chain.Link.state`."""


class RemovalPolicy(nn.Module):
    """A bidirectional LSTM of two layers; every layer is kept or removed on its own, given what it says of all."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, hidden, num_layers=2, bidirectional=True)
        self.out = nn.Linear(2 * hidden, 2)

    def forward(self, states: Tensor) -> Tensor:
        """Return log-probabilities (T, 2) of remove and keep, for the states (T, 7) of a chain of T layers."""
        outputs, _ = self.lstm(states)
        result: Tensor = self.out(outputs).log_softmax(-1)
        return result


class ShrinkagePolicy(nn.Module):
    """Two stacked LSTM cells that go along the layers; what was chosen for the one before is part of the input.

    The cells are in a ModuleList: in the published code they are in a plain list, and only `out` is ever trained.
    """

    def __init__(self, hidden: int, factors: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(FEATURES + factors, hidden), nn.LSTMCell(hidden, hidden)])
        self.out = nn.Linear(hidden, factors)

    def start(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the memory of both cells before the first layer, for `count` rollouts."""
        zero = self.out.weight.new_zeros(count, self.out.in_features)
        return [(zero, zero) for _ in self.cells]

    def forward(
        self, state: Tensor, chosen: Tensor, memory: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return log-probabilities (n, factors) at one layer, and the memory after it.

        Args:
            state: of the layer, (7,).
            chosen: what was chosen at the layer before, as shares of the factors (n, factors); 0 where nothing was.
            memory: of both cells.
        """
        inputs = torch.cat([state.expand(len(chosen), -1), chosen], dim=1)
        after = []
        for cell, before in zip(self.cells, memory, strict=True):
            after.append(cell(inputs, before))
            inputs = after[-1][0]
        return self.out(inputs).log_softmax(-1), after


@dataclass(frozen=True)
class Place:
    """A decision of the policies: at layer number `at`, `groups` gives for each choice the actions that mean it."""

    name: str
    at: int
    groups: Mapping[object, tuple[int, ...]]


def removal_log_probs(
    policy: RemovalPolicy, states: Tensor, places: Sequence[Place], rollouts: Sequence[Mapping[str, object]]
) -> Tensor:
    """Return log π of each rollout, (n,): the sum over the decisions that it has taken."""
    log_probs = policy(states)
    return torch.stack([_summed([log_probs[each.at] for each in places], places, rollout) for rollout in rollouts])


def shrinkage_log_probs(
    policy: ShrinkagePolicy, states: Tensor, places: Sequence[Place], rollouts: Sequence[Mapping[str, object]]
) -> Tensor:
    """Return log π of each rollout, (n,); every layer is shown what the rollout has for the one before."""
    chosen = states.new_zeros(len(rollouts), policy.out.out_features)
    memory = policy.start(len(rollouts))
    total = states.new_zeros(len(rollouts))
    for number, state in enumerate(states):
        log_probs, memory = policy(state, chosen, memory)
        here = [each for each in places if each.at == number]
        parts = [_summed([row] * len(here), here, rollout) for row, rollout in zip(log_probs, rollouts, strict=True)]
        total = total + torch.stack(parts)
        chosen = torch.stack([_shares(here, rollout, policy.out.out_features) for rollout in rollouts])
    return total


@torch.no_grad()
def draw_removals(
    policy: RemovalPolicy, states: Tensor, places: Sequence[Place], generator: random.Random
) -> dict[str, object]:
    """Draw what every decision on a layer is."""
    log_probs = policy(states)
    return {each.name: _drawn(each, log_probs[each.at], generator) for each in places}


@torch.no_grad()
def draw_shrinkages(
    policy: ShrinkagePolicy, states: Tensor, places: Sequence[Place], generator: random.Random
) -> dict[str, object]:
    """Draw what every width is, one layer after the other."""
    chosen, memory = states.new_zeros(1, policy.out.out_features), policy.start(1)
    drawn: dict[str, object] = {}
    for number, state in enumerate(states):
        log_probs, memory = policy(state, chosen, memory)
        here = [each for each in places if each.at == number]
        drawn |= {each.name: _drawn(each, log_probs[0], generator) for each in here}
        chosen = _shares(here, drawn, policy.out.out_features)[None]
    return drawn


def _summed(rows: Sequence[Tensor], places: Sequence[Place], rollout: Mapping[str, object]) -> Tensor:
    """Return the sum of the log-probabilities of what a rollout has at some places."""
    total = torch.zeros(())
    for row, place in zip(rows, places, strict=True):
        if place.name in rollout:
            total = total + row[list(place.groups[rollout[place.name]])].logsumexp(0)
    return total


def _drawn(place: Place, log_probs: Tensor, generator: random.Random) -> object:
    weights = [sum(log_probs[list(actions)].exp().tolist()) for actions in place.groups.values()]
    return generator.choices(list(place.groups), weights)[0]


def _shares(places: Sequence[Place], rollout: Mapping[str, object], actions: int) -> Tensor:
    """Return what a rollout chose at the first of these places: the actions that mean it, in parts of 1."""
    shares = torch.zeros(actions)
    for place in places[:1]:
        meant = list(place.groups[rollout[place.name]])
        shares[meant] = 1 / len(meant)
    return shares


def save_policies(path: Path, removal: RemovalPolicy, shrinkage: ShrinkagePolicy, factors: Sequence[float]) -> None:
    """Write both policies to a file that is whole or absent."""
    named = {"removal": removal, "shrinkage": shrinkage}
    state = {f"{name}.{key}": value.clone() for name, policy in named.items() for key, value in _state(policy).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"factors": json.dumps(list(factors))})


def load_policies(path: Path, removal: RemovalPolicy, shrinkage: ShrinkagePolicy, factors: Sequence[float]) -> None:
    """Give both policies the weights in a file.

    Raises:
        InputError: there is no such file, or its policies choose between other factors or are of another size.
    """
    if not path.is_file():
        raise InputError(f"policy: {path.parent} holds no {path.name}; name the run of a finished search by n2n")
    try:
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {}).get("factors", "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"policy: {path} cannot be read: {error}") from error
    if known != list(factors):
        raise InputError(f"policy: the policies of {path} choose between the factors {known}; got {list(factors)}")
    for name, policy in (("removal", removal), ("shrinkage", shrinkage)):
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        wanted = {key: value.shape for key, value in _state(policy).items()}
        if {key: value.shape for key, value in own.items()} != wanted:
            raise InputError(f"policy: the {name} policy of {path} is of another size than `hidden` says here")
        policy.load_state_dict(own)


def _state(policy: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in policy.state_dict().items()}
