"""Products that leave out zeros: the same values as the whole product of silenced weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from compress.graph.silenced_products import Products


class _Counting(TorchDispatchMode):
    """Runs a model through `Products` and notes how large the weights were that were really multiplied."""

    def __init__(self, products: Products) -> None:
        super().__init__()
        self.products, self.sizes = products, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__

        def noted(*args, **kwargs):
            if name in ("convolution", "addmm", "mm"):
                self.sizes.append(args[1 if name == "convolution" else -1].numel())
            return func(*args, **kwargs)

        return self.products.run(noted, name, args, kwargs or {})


def _silenced(layer: nn.Module) -> tuple[Products, int]:
    weight = layer.weight
    stay = {0: torch.arange(0, weight.shape[0], 3), 1: torch.arange(1, weight.shape[1], 2)}
    for dim, positions in stay.items():
        gone = torch.ones(weight.shape[dim], dtype=torch.bool).index_fill_(0, positions, False)
        weight.data.index_fill_(dim, gone.nonzero().flatten(), 0)
    left = len(stay[0]) * len(stay[1]) * weight[0, 0].numel()
    return Products({weight.untyped_storage().data_ptr(): (weight.data, stay)}), left


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("conv1d", (2, 70, 32)),
        ("conv2d", (2, 70, 7, 7)),
        ("conv3d", (1, 70, 4, 4, 5)),
        ("linear", (64, 70)),
        ("linear", (2, 40, 70)),
    ],
)
def test_a_silenced_weight_multiplies_only_what_stays_and_gives_the_same(kind, shape, bias):
    torch.manual_seed(0)
    makes = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
    layer = nn.Linear(70, 33, bias) if kind == "linear" else makes[kind](70, 33, 3, padding=1, bias=bias)
    products, left = _silenced(layer)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        with (counting := _Counting(products)):
            found = layer(x)
    torch.testing.assert_close(found, expected)
    assert counting.sizes == [left]
    assert found.stride() == expected.stride()


@pytest.mark.parametrize(
    "run",
    [
        lambda x, w: F.conv_transpose2d(x, w),
        lambda x, w: F.conv2d(x.repeat(1, 2, 1, 1), w, groups=2),
        lambda x, w: F.conv2d(x, w[:, :, 1:, 1:]),
        lambda x, w: F.conv2d(x.contiguous(memory_format=torch.channels_last), w),
        lambda x, w: F.linear(x.permute(0, 2, 3, 1)[..., :33], w[:, :, 0, 0].t()[:, :33]),
        lambda x, w: F.conv2d(x[:1], w),
    ],
    ids=["transposed", "grouped", "a part of the weight", "channels last", "a view of the weight", "few values"],
)
def test_other_uses_of_a_silenced_weight_run_as_they_are(run):
    torch.manual_seed(0)
    layer = nn.Conv2d(70, 70, 3, bias=False)
    products, _ = _silenced(layer)
    x = torch.randn(2, 70, 7, 7)
    with torch.no_grad():
        expected = run(x, layer.weight)
        with _Counting(products):
            found = run(x, layer.weight)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
