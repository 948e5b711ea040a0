"""Modules without storage: the shapes are those of computed outputs, and what only fills tensors is passed over."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from compress.core.meta import ShapesAlone, without_storage
from evaluators.cost import count_macs


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "resnetv2_50", "levit_128s"])
def test_a_network_counts_the_same_without_storage(name: str) -> None:
    images = torch.randn(1, 3, 224, 224)
    with without_storage():
        shapes = timm.create_model(name).eval()
    assert all(parameter.is_meta for parameter in shapes.parameters())
    with ShapesAlone(), torch.no_grad():
        assert shapes(images.to("meta")).shape == (1, 1000)
    assert count_macs(shapes, images.to("meta")) == count_macs(timm.create_model(name), images)


def test_shapes_and_types_are_those_that_torch_gives() -> None:
    x, norm = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3).eval()
    shapes = nn.BatchNorm2d(3, device="meta").eval()
    for function in (
        F.relu,
        F.hardswish,
        lambda x: (shapes if x.is_meta else norm)(x),
        lambda x: x + 1,
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda x: x.mean((2, 3), keepdim=True) * x,
        lambda x: x * torch.ones(2, 3, 4, 4, dtype=torch.float64, device=x.device),
        lambda x: x.int() + 0.5,
        lambda x: torch.sigmoid(x.int()),
    ):
        expected = function(x)
        with ShapesAlone(), torch.no_grad():
            found = function(x.to("meta"))
        assert (found.shape, found.dtype, found.is_meta) == (expected.shape, expected.dtype, True)


def test_tensors_with_values_are_computed_as_always() -> None:
    x = torch.tensor([-1.0, 2.0])
    with ShapesAlone():
        assert F.relu(x).tolist() == [0.0, 2.0] and nn.init.zeros_(x.clone()).tolist() == [0.0, 0.0]


def test_what_does_not_fit_fails_as_always() -> None:
    with without_storage(), pytest.raises(RuntimeError):
        torch.empty(2, 3) + torch.empty(2, 4)
