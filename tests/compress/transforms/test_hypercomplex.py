"""Sums of Kronecker products: the layer, its start values and its ordinary form."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.prune.kronecker import fresh_sum, nearest_sum
from compress.testing.transforms import check_transform
from compress.transforms.hypercomplex import Hypercomplex, HypercomplexConv, HypercomplexLayer, kronecker_sum
from compress.transforms.layers import folded


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [(), (3,), (3, 5), (2, 3, 2)])
def test_the_sum_is_that_of_its_definition_and_of_the_einsum(n: int, kernel: tuple[int, ...]) -> None:
    mixing, blocks = randn(n, n, n), randn(n, 2, 3, *kernel, seed=1)
    weight = kronecker_sum(mixing, blocks)
    einsum = torch.einsum("iab,icdk->acbdk", mixing, blocks.flatten(3) if kernel else blocks[..., None])
    assert torch.allclose(weight, einsum.reshape(2 * n, 3 * n, *kernel), atol=1e-6)
    for a, b, c, d in itertools.product(range(n), range(n), range(2), range(3)):
        one = sum(mixing[i, a, b] * blocks[i, c, d] for i in range(n))
        assert torch.allclose(weight[a * 2 + c, b * 3 + d], torch.as_tensor(one), atol=1e-6)


def test_four_products_with_hamiltons_matrices_are_the_quaternion_layer() -> None:
    signs = [  # rows: components of the product of (r, i, j, k) with the input's, Hamilton's rules
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
        [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
        [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
    ]
    r, i, j, k = parts = randn(4, 2, 3)
    x = randn(12, seed=1)
    u, v, w, z = x.view(4, 3)
    product = torch.cat([
        r @ u - i @ v - j @ w - k @ z,
        r @ v + i @ u + j @ z - k @ w,
        r @ w - i @ z + j @ u + k @ v,
        r @ z + i @ w - j @ v + k @ u,
    ])  # fmt: skip
    assert torch.allclose(kronecker_sum(torch.tensor(signs).float(), parts) @ x, product, atol=1e-6)


@pytest.mark.parametrize(("n", "params"), [(2, 9_224), (4, 4_672)])
def test_it_has_one_nth_of_the_parameters(n: int, params: int) -> None:
    layer = HypercomplexConv(nn.Conv2d(32, 64, 3, bias=False), n)
    assert sum(p.numel() for p in layer.parameters()) == params == n**3 + 64 * 32 * 9 // n


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_fit_leaves_out_what_the_singular_values_say_and_no_random_change_is_nearer(n: int) -> None:
    weight = randn(16, 24, 3, 3)
    (mixing, blocks), left_out = nearest_sum(weight, n)
    rows = [
        weight[a * 16 // n : (a + 1) * 16 // n, b * 24 // n : (b + 1) * 24 // n].flatten()
        for a in range(n)
        for b in range(n)
    ]
    s = np.linalg.svd(torch.stack(rows).double().numpy(), compute_uv=False)
    expected = 1 - (s[:n] ** 2).sum() / (s**2).sum()

    def error(mixing: Tensor, blocks: Tensor) -> float:
        return float((kronecker_sum(mixing, blocks) - weight).square().sum() / weight.square().sum())

    assert left_out == pytest.approx(expected, rel=1e-9) and error(mixing, blocks) == pytest.approx(expected, rel=1e-5)
    assert float(mixing.square().mean()) == pytest.approx(1, rel=1e-5)
    for seed in range(5):
        other = error(mixing + 0.01 * randn(*mixing.shape, seed=seed), blocks + 0.001 * randn(*blocks.shape, seed=seed))
        assert other > error(mixing, blocks)


@pytest.mark.parametrize(("n", "published"), [(2, 0.49), (4, 0.72), (8, 0.80)])
def test_a_random_weight_leaves_out_what_was_measured(n: int, published: float) -> None:
    _, left_out = nearest_sum(randn(64, 64, 3, 3), n)
    assert left_out == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("shape", [(8, 8), (8, 4, 3, 3)])
def test_a_weight_that_is_such_a_sum_is_found_exactly(shape: tuple[int, ...]) -> None:
    weight = kronecker_sum(randn(2, 2, 2), randn(2, shape[0] // 2, shape[1] // 2, *shape[2:], seed=1))
    factors, left_out = nearest_sum(weight, 2)
    assert left_out < 1e-9 and torch.allclose(kronecker_sum(*factors), weight, atol=1e-5)
    factors, left_out = nearest_sum(torch.zeros(shape), 2)  # a branch that starts at zero
    assert left_out == 0 and not kronecker_sum(*factors).any() and all(part.isfinite().all() for part in factors)


@pytest.mark.parametrize("n", [2, 4])
def test_fresh_weights_have_kaimings_deviation(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(64, 32, 3, 3)
    for _ in range(20):  # the scaling of A makes it so for every draw
        mixing, blocks = fresh_sum(like, n, generator)
        assert float(kronecker_sum(mixing, blocks).std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(8, 12), (5, 3, 8)),
    "linear without bias": (nn.Linear(8, 12, bias=False), (5, 8)),
    "stride": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 9)),
    "dilation": (nn.Conv2d(8, 12, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False), (2, 8, 9, 9)),
    "same": (nn.Conv2d(8, 12, 5, padding="same"), (2, 8, 9, 9)),
    "1d": (nn.Conv1d(8, 4, 3), (2, 8, 9)),
    "3d": (nn.Conv3d(4, 8, 3, padding=1), (2, 4, 5, 5, 5)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_the_ordinary_layer_gives_the_same(case: str) -> None:
    given, shape = LAYERS[case]
    model = nn.Sequential(copy.deepcopy(given))
    changed = Hypercomplex(n=2, layers=("0",)).apply(model, randn(*shape))
    layer = changed[0]  # type: ignore[index]
    assert isinstance(layer, HypercomplexLayer)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    assert layer.weight.shape == given.weight.shape
    x = randn(*shape, seed=9)
    expected = changed(x)
    plain = folded(copy.deepcopy(changed))
    assert type(plain[0]) is type(given) and repr(plain[0]) == repr(given)  # type: ignore[index]
    assert torch.allclose(plain(x), expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in changed.parameters())


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x).relu())


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    model = Shared()
    check_transform(Hypercomplex(n=2, layers=("first",)), model, randn(1, 8))
    changed: Any = Hypercomplex(n=2, layers=("first",)).apply(model, randn(1, 8))
    assert changed.first is changed.again and isinstance(changed.first, HypercomplexLayer)
    plain: Any = folded(changed)
    assert plain.first is plain.again and type(plain.first) is nn.Linear


@pytest.mark.parametrize(
    ("model", "name", "sentence"),
    [
        (nn.Sequential(nn.Linear(8, 9)), "0", "'0' cannot be hypercomplex: 2 does not divide its 9 outputs"),
        (nn.Sequential(nn.Conv2d(3, 8, 1)), "0", "2 does not divide its 3 inputs"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), "0", "depthwise"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "0", "it has groups"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), "0", "it pads with reflect"),
        (nn.Sequential(nn.ReLU()), "0", "'0' is a ReLU, no linear layer or convolution"),
        (nn.Sequential(nn.ReLU()), "head", "the model has no layer 'head'"),
    ],
)
def test_a_layer_that_cannot_be_such_a_sum_is_named(model: nn.Module, name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Hypercomplex(n=2, layers=(name,)).apply(model, randn(1, 8))
