from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from nested_cases import MODELS, bundle_of, nested_of

from compress.core.errors import InputError
from compress.core.problems import validated
from compress.core.tensors import tensors_in
from compress.runs.recipe import load_recipe
from compress.runs.stages.sort import Sort
from compress.sorted.config import SortConfig
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


def test_narrow_heads_of_torchs_own_attention_keep_the_scale_of_whole_ones() -> None:
    bundle = bundle_of("torch's own attention")
    found = nested_of(bundle, units=["heads", "head_dims"], depth=False, by="kind", widths=[0.5, 1.0], members="all")
    x = bundle.example_inputs(3)
    for arch in found.members:
        found.network.activate(arch)
        with torch.no_grad():
            ours, theirs = (each(x) for each in (found.network, found.network.extract()))
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_depth_is_left_out_where_no_block_can_go_and_only_if_it_need_not_be_there() -> None:
    every_block = {"exclude": ["blocks.?.attn"], "units": ["mlp"], "by": "model", "members": "all"}
    found = nested_of(bundle_of("vit"), **every_block)
    assert [decision.name for decision in found.network.space.decisions] == ["width"]
    with pytest.raises(InputError) as caught:
        nested_of(bundle_of("vit"), depth=[0.5, 1.0], **every_block)
    assert caught.value.problems == ["sort.depth: the model has no residual blocks to leave out; allowed: false"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 4}, "sort.members: got 4, but there are 2 members; allowed all or diagonal"),
        ({"members": 1}, "sort.members: got 1; allowed all or diagonal"),
        (
            {"widths": [1.0]},
            "sort.widths: the model leaves nothing to decide with widths [1.0], align 1 and min_width 1",
        ),
        (
            {"members": "all", "sampling": {"weights": [1, 1, 1]}},
            "sort.sampling.weights: got 3 of them for 2 members; allowed is one for each",
        ),
    ],
)
def test_what_does_not_fit_the_model_names_its_key_before_anything_is_trained(
    options: dict[str, object], said: str
) -> None:
    config = SortConfig.model_validate({"widths": [0.5, 1.0], "depth": False, "by": "model", **options})
    with pytest.raises(InputError) as caught:
        Sort("sort").check_model(config, bundle_of("vit"))
    assert caught.value.problems == [said]


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({"sampling": "sandwich", "per_update": 1}, "per_update", "sampling sandwich draws the largest and"),
        ({"sampling": {"weights": [0, 0]}}, "sampling.weights", "no member would be drawn"),
        ({"distill": {"loss": "kd"}}, "distill", "allowed with sampling sandwich and data repeat"),
        ({"keep": "best"}, "keep", "best needs the accuracy of one network"),
        ({"patience": 3}, "patience", "needs the accuracy of one network"),
    ],
)
def test_what_is_wrong_by_itself_names_its_key(options: dict[str, object], key: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(SortConfig, options)
    assert [text.startswith(f"{key}: ") and said in text for text in caught.value.problems] == [True]


def test_single_weights_that_a_pruning_removes_before_are_told_with_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: x\nmodel: {source: builtin, name: cifar_resnet20}\ndata: {name: digits}\n"
        "train: {epochs: 1}\nprune: {kind: weights, sparsity: 0.5}\nsort: {epochs: 1}\nexport: {}\n"
    )
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert ["sort: nested widths would move the weights" in text for text in caught.value.problems] == [True]


def test_criteria_that_cannot_score_the_model_are_named() -> None:
    bundle = bundle_of("vit")
    with pytest.raises(InputError, match=r"^sort\.order: 'taylor' needs data to score on"):
        order_units(nested_of(bundle).network, "taylor", bundle.example_inputs(2))


def test_so_many_members_are_of_all_sizes() -> None:
    bundle = bundle_of("resnet")
    found = nested_of(bundle, by="layer", members=24)
    macs = [found.network.cost(arch)["macs"] for arch in found.members]
    assert len(set(found.members)) == 24 and found.members[-1] == found.network.full
    steps = [(after - before) / (macs[-1] - macs[0]) for before, after in itertools.pairwise(macs)]
    assert max(steps) < 0.15, "random members are mostly of a middle size"
    assert nested_of(bundle, by="layer", members=24).members == found.members
