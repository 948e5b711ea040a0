"""Small models whose channels are searched."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spaces.architecture import Architecture
from spaces.channels import ChannelSpace
from spaces.registry import create

CIFAR = {"source": "builtin", "name": "cifar_resnet20"}
VIT = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7},
}
SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "kwargs": {
        "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "num_classes": 7, "drop_path_rate": 0.0,
    },
}  # fmt: skip
SMALL = (3, 32, 32)
MODELS: dict[str, dict[str, Any]] = {
    "cifar_resnet20": CIFAR,
    "cifar_resnet20 with projections": {**CIFAR, "kwargs": {"shortcut": "B"}},
    "resnet18": {"name": "resnet18", "input_size": SMALL, "kwargs": {"num_classes": 7}},
    "mobilenetv2": {"name": "mobilenetv2_035", "input_size": SMALL, "kwargs": {"num_classes": 7}},
    "vit": VIT,
    "swin": SWIN,
}


@cache
def opened(options: str) -> ChannelSpace:
    space = create("channels", json.loads(options))
    assert isinstance(space, ChannelSpace)
    return space


def channels(model: dict[str, Any], **options: Any) -> ChannelSpace:
    return opened(json.dumps({"model": model, **options}))


def samples(space: ChannelSpace, count: int) -> list[Architecture]:
    generator = random.Random(0)
    return [space.sample(generator) for _ in range(count)]


def images(space: ChannelSpace, count: int = 2) -> Tensor:
    task = space.default_task
    return torch.randn(count, task.in_chans, task.img_size, task.img_size)
