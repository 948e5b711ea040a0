"""Order the units of a network by a pruning criterion, so that a prefix of every width is the good part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.modes import evaluating
from compress.core.tensors import Inputs, call, doubled, moved, tensors_in
from compress.criteria.unit_criterion import Batches
from compress.sorted.network import NestedNetwork
from compress.sorted.space import blamed_on_sort

TOLERANCE = 1e-9
"""Of double precision: a sum in another order is off by 1e-14, one unit in a wrong place by far more."""


def order_units(network: NestedNetwork, criterion: str, inputs: Inputs, batches: Batches | None = None) -> float:
    """Move the best units of every width to the front, in place, and return how far outputs moved, as a share.

    Args:
        network: on the CPU or another device that has double precision.
        criterion: of structure pruning, such as `magnitude`.
        inputs: what the whole network is tried out on before and after.
        batches: yields samples, for criteria that need data.

    Raises:
        InputError: the criterion cannot score the network, or the network does not compute the same afterwards.
    """
    before = _outputs(network.network, inputs)
    with blamed_on_sort():
        network.sort_units(criterion, batches)
    after = _outputs(network.network, inputs)
    scale = max(float(each.abs().max()) for each in before) or 1.0
    moved = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True)) / scale
    if not moved <= TOLERANCE:
        raise InputError(
            f"sort: the units of this model cannot be ordered: its outputs move by {moved:.1e} of the largest when "
            "equal units change places, so some layer hangs on where they are; exclude it by sort.exclude"
        )
    return moved


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with evaluating(model), _in_double(model):
        device = next(model.parameters()).device
        return [each.detach().clone() for each in tensors_in(call(model, moved(doubled(inputs), device)))]


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """Let a model be in double precision inside the block; single precision comes back exactly."""
    tensors = [*model.parameters(), *model.buffers()]
    types = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, kind in zip(tensors, types, strict=True):
            tensor.data = tensor.data.to(kind)
