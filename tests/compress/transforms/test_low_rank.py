"""Two layers in place of one: their product, and how ranks are chosen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.prune.ranks import Spectrum, flat, keeping, meeting, refuse_unreachable, spectrum, truncated
from compress.prune.replaceable import Layer
from compress.testing.transforms import check_transform
from compress.transforms.layers import Plain
from compress.transforms.low_rank import LowRank


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYERS: dict[str, tuple[Plain, tuple[int, ...]]] = {
    "linear": (nn.Linear(8, 12), (5, 3, 8)),
    "linear without bias": (nn.Linear(12, 8, bias=False), (5, 12)),
    "stride": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 9)),
    "dilation": (nn.Conv2d(8, 12, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False), (2, 8, 9, 9)),
    "reflect": (nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"), (2, 8, 9, 9)),
    "1d": (nn.Conv1d(8, 4, 3), (2, 8, 9)),
    "3d": (nn.Conv3d(4, 8, 3, padding=1), (2, 4, 5, 5, 5)),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_pair_computes_the_layer_with_its_weight_truncated(case: str, rank: int) -> None:
    layer, shape = LAYERS[case]
    weight = layer.weight.detach()
    u, s, v = np.linalg.svd(weight.flatten(1).double().numpy(), full_matrices=False)
    nearest = torch.from_numpy((u[:, :rank] * s[:rank]) @ v[:rank]).float()
    found = spectrum(Layer("0", layer, 1))
    assert np.allclose(np.diff(found.kept), s**2 / (s**2).sum(), atol=1e-12) and found.full == len(s)
    expand, reduce = truncated(found, rank)
    assert torch.allclose(expand @ reduce, nearest, atol=1e-5)
    assert torch.allclose(expand.norm(dim=0), reduce.norm(dim=1), rtol=1e-4)

    model = nn.Sequential(layer)
    check_transform(LowRank(ranks={"0": rank}), model, randn(*shape))
    x = randn(*shape, seed=3)
    with torch.no_grad():
        layer.weight.copy_(nearest.view_as(weight))
        expected = model(x)
        layer.weight.copy_(weight)
    pair: Any = LowRank(ranks={"0": rank}).apply(nn.Sequential(layer), x)[0]  # type: ignore[index]
    with torch.no_grad():
        pair.reduce.weight.copy_(reduce.view_as(pair.reduce.weight))
        pair.expand.weight.copy_(expand.view_as(pair.expand.weight))
        if layer.bias is not None:
            pair.expand.bias.copy_(layer.bias)
        assert torch.allclose(pair(x), expected, atol=1e-5)
        assert torch.allclose(pair.weight, nearest.view_as(weight), atol=1e-5)
    assert pair.reduce.bias is None
    assert pair.reduce.weight.numel() + pair.expand.weight.numel() == rank * found.unit


def made(energies: list[float], into: int, out: int, places: int, name: str) -> Spectrum:
    weight = torch.zeros(out, into)
    for i, energy in enumerate(energies):
        weight[i, i] = energy**0.5
    layer = nn.Linear(into, out)
    layer.weight.data = weight
    return spectrum(Layer(name, layer, places))


def test_the_least_rank_that_keeps_the_energy() -> None:
    layers = [made([4, 3, 2, 1], 8, 4, 1, "a"), made([1, 1, 1, 1], 4, 9, 1, "b"), made([0, 0], 2, 2, 1, "c")]
    assert keeping(layers, 0.7) == {"a": 2, "b": 3, "c": 1} and keeping(layers, 0.701)["a"] == 3
    assert [each.most for each in layers] == [2, 2, 0]


@pytest.mark.parametrize("counted", ["macs", "params"])
@pytest.mark.parametrize("seed", range(4))
def test_a_budget_is_met_with_nearly_the_most_energy_that_any_ranks_keep(counted: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = [(40, 30, 9), (24, 60, 4), (36, 36, 1)]
    layers = [
        made(sorted(generator.pareto(1, min(i, o)) + 1e-3)[::-1], i, o, places, str(k))
        for k, (i, o, places) in enumerate(sizes)
    ]
    places = [each.layer.places if counted == "macs" else 1 for each in layers]
    other = 500
    total = other + sum(place * each.dense for place, each in zip(places, layers, strict=True))
    ranks = meeting(layers, counted, total, 0.5)

    def cost(choice: tuple[int, ...]) -> int:  # 0 stands for a whole layer
        units = [rank * each.unit if rank else each.dense for rank, each in zip(choice, layers, strict=True)]
        return other + sum(place * unit for place, unit in zip(places, units, strict=True))

    def energy(choice: tuple[int, ...]) -> float:
        return sum(each.kept[rank] if rank else 1.0 for rank, each in zip(choice, layers, strict=True))

    options = itertools.product(*(range(each.most + 1) for each in layers))
    best = max(energy(choice) for choice in options if cost(choice) <= 0.5 * total)
    found = tuple(ranks.get(str(k), 0) for k in range(3))
    assert 0.48 * total <= cost(found) <= 0.5 * total
    assert energy(found) >= best - 0.02


def test_a_budget_that_cannot_be_met_says_how_near_it_comes() -> None:
    layers = [made([4, 3, 2, 1], 8, 4, 1, "a")]
    with pytest.raises(InputError, match=r"^prune\.budget\.params: 0\.3 cannot be met; the nearest is 0\.848: every"):
        meeting(layers, "params", 132, 0.3)
    with pytest.raises(InputError, match=r"0\.95 cannot be met; the nearest is 0\.750: too few layers"):
        meeting(layers, "params", 32, 0.95)


@pytest.mark.parametrize("target", [0.3, 0.36, 0.6, 0.72, 0.9, 0.96])
def test_a_budget_is_refused_for_shapes_where_no_choice_of_ranks_meets_it(target: float) -> None:
    layers = [flat(Layer(name, nn.Linear(*shape), 1)) for name, shape in {"a": (60, 3), "b": (3, 40)}.items()]
    other, total = 60, 60 + sum(each.dense for each in layers)
    costs = [[each.unit * rank for rank in range(1, each.most + 1)] + [each.dense] for each in layers]
    sums = [(other + sum(choice)) / total for choice in itertools.product(*costs)]
    below = [each for each in sums if each <= target] or [min(sums)]
    if abs(max(below) - target) <= 0.02:
        refuse_unreachable(layers, "params", total, target)
    else:
        with pytest.raises(InputError, match=f"{target:g} cannot be met; the nearest is {max(below):.3f}"):
            refuse_unreachable(layers, "params", total, target)


@pytest.mark.parametrize(
    ("model", "name", "sentence"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), "0", "'0' cannot be factorised: a depthwise"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "0", "it has groups"),
        (nn.Sequential(nn.ReLU()), "head", "the model has no layer 'head'"),
    ],
)
def test_a_layer_that_cannot_be_two_is_named(model: nn.Module, name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        LowRank(ranks={name: 2}).apply(model, randn(1, 8))
