"""What a bundle relies on in a transform."""

from __future__ import annotations

import copy
import json

import torch
from torch import nn

from compress.core.tensors import Inputs, call, flat
from compress.transforms import Transform, transforms
from compress.transforms.history import from_json, to_json


def check_transform(transform: Transform, model: nn.Module, example_inputs: Inputs) -> None:
    """Apply `transform` to copies of `model` as bundles do: written down, read back, with other weights.

    Args:
        transform: of a registered kind.
        model: one that it was made for; it is left as it is.
        example_inputs: one sample (1, ...).

    Raises:
        AssertionError: it is not registered, does not come back from JSON as it was, gives other names or shapes from
            one time to the next, or a model that cannot be run or does not take the first one's weights.
    """
    kind = transform.kind
    assert kind in transforms and type(transform) is transforms.get(kind), f"transform {kind} is not registered"
    (read,) = from_json(json.loads(to_json((transform,))))
    assert read == transform, f"transform {kind} comes back from JSON as another: {read}"
    one = transform.apply(copy.deepcopy(model), example_inputs).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other = read.apply(other, example_inputs).eval()
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (one, other)]
    assert shapes[0] == shapes[1], f"transform {kind} depends on weights: bundles could not be opened"
    other.load_state_dict(one.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in one.named_parameters():  # those of new layers need have no values yet
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            other.get_parameter(name).copy_(parameter)
        same = torch.equal(*(flat(call(each, example_inputs)) for each in (one, other)))
    assert same, f"transform {kind} keeps something that is neither a field of it nor in the weights"
