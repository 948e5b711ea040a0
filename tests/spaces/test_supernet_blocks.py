"""Blocks of supernets: run one after the other they are the network, and their paths are its architectures."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.errors import InputError
from spaces.registry import create, open_preset
from spaces.space import Space
from spaces.supernet import Supernet

HYTRA = {"layers": 4, "blocks": 2, "channels": (16, 32, 64), "head_dim": 8, "stem": "cifar", "stem_channels": 8}


def classified(net: Any, features: Tensor) -> Tensor:
    """What the supernet's classifier makes of the last block's features."""
    pooled = features.mean((2, 3))
    if hasattr(net, "heads"):
        return next(head for head in net.heads if head.in_features == pooled.shape[1])(pooled)  # type: ignore[no-any-return]
    out: Tensor = net.network.classifier(F.dropout(pooled, 0.0))
    return out


def made(space: Space) -> Supernet:
    space.default_task = space.task(5, 3, 16)
    net = space.supernet(space.default_task)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hytra", HYTRA),
        ("hytra", {**HYTRA, "block_scales": (3, 2)}),
        ("nats_size", {}),
        ("nas_bench_macro", {"stem": 4, "depths": (1, 2)}),
    ],
)
@torch.no_grad()
def test_blocks_one_after_the_other_are_the_network(name: str, options: dict[str, Any]) -> None:
    net = made(create(name, options))
    generator, images = random.Random(0), torch.randn(2, 3, 16, 16)
    for _ in range(4):
        path: dict[str, Any] = {}
        features = images
        for block in net.blocks():
            path = dict(generator.choice(block.paths(path)))
            block.activate(path)
            kept = features.clone()
            features, given = block(features), features
            assert torch.equal(given, kept)
            assert features.shape[1] in block.outputs
            smallest = features.shape[2] / block.outputs[features.shape[1]]
            assert smallest * max(block.outputs.values()) <= 16
        net.activate(path)
        assert torch.allclose(classified(net, features), net(images), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("nats_size", {}), ("nas_bench_macro", {"stem": 4, "depths": (1, 2)}), ("hytra", HYTRA)]
)
def test_codes_of_the_blocks_tell_architectures_apart(name: str, options: dict[str, Any]) -> None:
    space = create(name, options)
    with torch.device("meta"):
        blocks = space.supernet(space.default_task).blocks()
    generator = random.Random(0)
    drawn = {space.sample(generator) for _ in range(60)}
    assert len({tuple(block.code(arch) for block in blocks) for arch in drawn}) == len(drawn)


def test_hytra_paths_are_the_published_ones() -> None:
    space = open_preset("hytra", "bossnet-t0-path")[0]
    t0 = space.parse("5433 3230 0010 0000")
    with torch.device("meta"):
        blocks = space.supernet(space.default_task).blocks()
    before: Any = {}
    for block, code, paths in zip(blocks, ("5433", "3230", "0010", "0000"), (51, 80, 16, 16), strict=True):
        found = {block.code(path): path for path in block.paths(before)}
        assert len(found) == paths
        before = found[code]
        assert block.code(t0) == code
    assert space.check(before) == t0
    ends_at_28 = next(path for path in blocks[0].paths({}) if blocks[0].code(path) == "5444")
    assert len(blocks[1].paths(ends_at_28)) == 99
    assert len(blocks[1].paths(next(p for p in blocks[0].paths({}) if blocks[0].code(p) == "5555"))) == 51


def test_nats_sizes_have_the_published_blocks() -> None:
    space = create("nats_size")
    with torch.device("meta"):
        blocks = space.supernet(space.default_task).blocks()
    assert [len(block.paths({})) for block in blocks] == [64, 64, 8]
    arch = space.parse("64:40:48:64:56")
    assert [block.code(arch) for block in blocks] == ["74", "57", "6"]


def test_a_space_without_blocks_says_so() -> None:
    space = create("pooling")
    with torch.device("meta"), pytest.raises(InputError, match=r"space pooling: its supernet has no blocks"):
        space.supernet(space.default_task).blocks()
