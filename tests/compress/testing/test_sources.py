"""The checks of sources of models pass for what is shipped, and say in a sentence what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.bundle import Bundle
from compress.testing.sources import check_source
from evaluators.datasets import Preprocessing
from evaluators.tasks import DEFAULT
from spaces.sources.builtin import BuiltinSource
from spaces.zoo import BuiltModel, ModelConfig, build_model, sources

SMALL_SWIN = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}
GREY = (1, 64, 64)
COLOUR = (3, 64, 64)
SHIPPED = [
    ({"source": "timm", "name": "resnet10t"}, GREY),
    ({"source": "timm", "name": "swin_tiny_patch4_window7_224", "kwargs": SMALL_SWIN}, COLOUR),
    ({"source": "timm", "name": "vit_tiny_patch16_224", "kwargs": {"depth": 1}}, COLOUR),
    ({"source": "torchvision", "name": "shufflenet_v2_x0_5"}, COLOUR),
    ({"source": "builtin", "name": "cifar_resnet20"}, GREY),
    ({"source": "python", "name": "torchvision.models:mnasnet0_5", "kwargs": {"num_classes": 7}}, COLOUR),
    ({"source": "space", "name": "nats_size", "kwargs": {"arch": "8:8:8:8:8"}}, GREY),
    ({"source": "bundle", "name": "saved"}, COLOUR),
]


def test_every_source_is_tried() -> None:
    elsewhere = {"huggingface"}  # an extra: tests/spaces/test_huggingface.py
    assert {config["source"] for config, _ in SHIPPED} == set(sources) - elsewhere


@pytest.mark.parametrize(("config", "shape"), SHIPPED, ids=[str(config["name"]) for config, _ in SHIPPED])
def test_shipped_sources_pass(
    config: dict[str, Any], shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if config["source"] == "bundle":
        built = build_model(ModelConfig(source="builtin", name="cifar_resnet20"), DEFAULT.bind(7, shape))
        preprocessing = Preprocessing(shape, (0.5,) * 3, (0.5,) * 3)
        Bundle(built.module, built.config, built.task, preprocessing).save(Path("saved"))
    check_source(ModelConfig(**config), DEFAULT.bind(7, shape))


class Free(BuiltinSource):
    """Takes any name."""

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        return iter(())

    def build(self, config: ModelConfig, task: Any) -> BuiltModel:
        known = config.model_copy(update={"name": "cifar_resnet20"})
        return replace(super().build(known, task), config=config)


class Fixed(BuiltinSource):
    """Draws the same weights whatever the seed."""

    def build(self, config: ModelConfig, task: Any) -> BuiltModel:
        torch.manual_seed(3)
        return super().build(config, task)


class Small(BuiltinSource):
    """Takes images as large as it likes."""

    def build(self, config: ModelConfig, task: Any) -> BuiltModel:
        return super().build(config, task.resized((3, 32, 32)))


class Vague(BuiltinSource):
    """Resolves to a config that leaves the head open."""

    def build(self, config: ModelConfig, task: Any) -> BuiltModel:
        built = super().build(config, task)
        return replace(built, config=built.config.model_copy(update={"kwargs": {}}))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Free, "takes 'cifar_resnet20_that_is_not_there'"),
        (Fixed, "gives the same weights for another seed"),
        (Small, r"input size \(3, 32, 32\); asked for are \(3, 64, 64\)"),
        (Vague, "the resolved config builds another architecture"),
    ],
)
def test_a_wrong_source_is_caught(monkeypatch: pytest.MonkeyPatch, source: type[BuiltinSource], says: str) -> None:
    assert "builtin" in sources
    monkeypatch.setitem(sources._items, "builtin", source)
    with pytest.raises(AssertionError, match=says):
        check_source(ModelConfig(source="builtin", name="cifar_resnet20"))
