from __future__ import annotations

import copy

import pytest
import torch
from nested_cases import MODELS, bundle_of, nested_of

from compress.core.errors import InputError
from compress.core.tensors import tensors_in
from compress.sorted.order import order_units

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_members_are_views_of_the_given_model_and_the_largest_is_that_model(name: str) -> None:
    bundle = bundle_of(name)
    model, x = bundle.model, bundle.example_inputs(3)
    places = {key: value.data_ptr() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = [each.clone() for each in tensors_in(model(x))]
        found = nested_of(bundle)
        network = found.network
        assert network.network is model
        for arch in found.members:
            network.activate(arch)
            alone = network.extract()
            assert sum(each.numel() for each in alone.parameters()) == network.cost(arch)["params"]
            for ours, theirs in zip(tensors_in(network(x)), tensors_in(alone(x)), strict=True):
                assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max().clamp(min=1)
        network.activate(network.full)
        assert all(torch.equal(*pair) for pair in zip(expected, tensors_in(network(x)), strict=True))
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == places
    assert sum(each.numel() for each in network.parameters()) == network.cost(network.full)["params"]


@every_model
def test_a_member_has_gradients_of_zero_outside_its_slices_and_none_beyond_its_depth(name: str) -> None:
    bundle = bundle_of(name)
    found = nested_of(bundle)
    network, smallest = found.network, found.members[0]
    network.activate(smallest)
    sum(each.square().sum() for each in tensors_in(network(bundle.example_inputs(2)))).backward()  # type: ignore[union-attr]
    parts, gone = network.parts(smallest)
    assert gone
    for key, parameter in network.network.named_parameters():
        if key.startswith(gone):
            assert parameter.grad is None
        elif key in parts:
            inside = torch.zeros_like(parameter, requires_grad=True)
            parts[key].of(inside).sum().backward()
            assert parameter.grad is not None and parameter.grad[inside.grad == 0].abs().sum() == 0
            assert (inside.grad == 0).any()


@every_model
def test_ordered_units_compute_the_same_and_keep_the_best_in_front(name: str) -> None:
    bundle = bundle_of(name)
    network = nested_of(bundle).network
    before = copy.deepcopy(bundle.model)
    x = bundle.example_inputs(2)
    assert order_units(network, "magnitude", x) < 1e-11
    with torch.no_grad():
        expected, got = (list(tensors_in(model.double()(x.double()))) for model in (before, bundle.model))
    for one, other in zip(expected, got, strict=True):
        assert (one - other).abs().max() <= 1e-11 * one.abs().max()
    changed = [
        key for key, value in before.state_dict().items() if not torch.equal(value, bundle.model.state_dict()[key])
    ]
    assert changed
    again = network.space.ranking("magnitude", module=network.network)
    assert all(torch.allclose(each, each.sort(descending=True).values) for each in again.scores.values())


def test_a_family_without_the_full_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"widths.*\n.*the full network is missing; add 1.0"):
        nested_of(bundle_of("vit"), widths=[0.5])
    with pytest.raises(InputError) as caught:
        nested_of(bundle_of("vit"), depth=False, by="model", members=[{"width": 0.5}])
    assert caught.value.problems == ["sort.members: the full network is missing, which is {'width': 1.0}; add it"]


def test_criteria_that_cannot_score_the_model_are_named() -> None:
    bundle = bundle_of("vit")
    with pytest.raises(InputError, match=r"^sort\.order: 'taylor' needs data to score on"):
        order_units(nested_of(bundle).network, "taylor", bundle.example_inputs(2))
