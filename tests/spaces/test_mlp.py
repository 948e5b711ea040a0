"""The built-in perceptron: its layers, the data's sizes, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from compress.core.errors import InputError
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig, build_model


def test_it_takes_the_sizes_of_the_data() -> None:
    config = ModelConfig(source="builtin", name="mlp", kwargs={"widths": [7, 5], "dropout": 0.5})
    built = build_model(config, DEFAULT.bind(4, (1, 6, 8)))
    counts = [weight.numel() for weight in built.module.parameters()]
    assert counts == [48 * 7, 7, 7, 7, 7 * 5, 5, 5, 5, 5 * 4, 4]
    images = torch.randn(3, 1, 6, 8)
    expected = images.flatten(1)
    for index in range(2):
        linear, norm, *_ = built.module.layers[index]  # type: ignore[index,union-attr,misc]
        expected = norm(linear(expected)).relu()
    assert torch.allclose(built.module(images), built.module.head(expected))  # type: ignore[operator]
    again = build_model(built.config)
    assert again.input_size == (1, 6, 8) and again.module(images).shape == (3, 4)


@pytest.mark.parametrize("widths", [[8, 0], [8, 2.5], "88", [True]])
def test_widths_that_are_none_are_refused(widths: object) -> None:
    config = ModelConfig(source="builtin", name="mlp", kwargs={"widths": widths})
    with pytest.raises(InputError, match=r"model\.kwargs: 'mlp' cannot be built .*widths are whole numbers above 0"):
        build_model(config, DEFAULT.bind(4, (3, 8, 8)))
