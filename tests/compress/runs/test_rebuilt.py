"""A stage of a third party leaves on disk what it had, or is told that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from compress.bundle import Bundle, open_model
from compress.core.errors import CompressError
from compress.runs.rebuilt import check_rebuilt
from spaces.zoo import ModelConfig


@pytest.fixture
def bundle() -> Bundle:
    return open_model(ModelConfig(source="builtin", name="mlp", kwargs={"widths": [8]}, input_size=(1, 4, 4))).bundle


def test_other_weights_are_the_same_model(bundle: Bundle, tmp_path: Path) -> None:
    nn.init.normal_(next(bundle.model.parameters()))
    bundle.save(tmp_path / "bundle")
    check_rebuilt(bundle, tmp_path / "bundle", "mine")


def test_an_exchanged_activation_is_another_model(bundle: Bundle, tmp_path: Path) -> None:
    for module in list(bundle.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.GELU())
    bundle.save(tmp_path / "bundle")
    with pytest.raises(CompressError, match=r"^mine: what it left gives other outputs once it is opened again"):
        check_rebuilt(bundle, tmp_path / "bundle", "mine")


def test_an_exchanged_layer_cannot_be_opened(bundle: Bundle, tmp_path: Path) -> None:
    name, layer = next((name, each) for name, each in bundle.model.named_modules() if isinstance(each, nn.Linear))
    parent, _, last = name.rpartition(".")
    setattr(bundle.model.get_submodule(parent), last, nn.Linear(layer.in_features, layer.out_features, bias=False))
    bundle.save(tmp_path / "bundle")
    with pytest.raises(CompressError, match=r"^mine: what it left cannot be opened again: .*transform"):
        check_rebuilt(bundle, tmp_path / "bundle", "mine")
