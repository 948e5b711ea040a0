"""A family of an untrained network, in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from compress.bundle import open_model
from compress.picking.members import Member
from compress.sorted.family import INDEX, Family
from compress.sorted.network import NestedNetwork
from compress.sorted.rating import make_family
from compress.sorted.space import NestedSpace
from evaluators.datasets import DataConfig
from spaces.architecture import Architecture
from spaces.channels.space import ChannelsConfig
from spaces.zoo import ModelConfig

OPTIONS = {"widths": [0.5, 1.0], "depth": True}


RESNET = {"source": "builtin", "name": "cifar_resnet20"}


def small_family(run: Path, members: int = 5, model: Mapping[str, Any] = RESNET) -> Family:
    """Write the family of a model with random weights to `run`, with some of its members and the full network."""
    data: Any = TypeAdapter(DataConfig).validate_python(
        {"name": "digits", "image_size": 16, "limit_train": 64, "limit_test": 50, "batch_size": 16}
    )
    opened = open_model(ModelConfig.model_validate(model), data)
    generator = torch.Generator().manual_seed(3)
    for buffer in opened.bundle.model.buffers():  # batch norm statistics as after training
        if buffer.is_floating_point():
            buffer.add_(torch.rand(buffer.shape, generator=generator))
    space = NestedSpace(opened.bundle, ChannelsConfig.model_validate(OPTIONS))
    assert opened.data is not None
    drawn = random.Random(0)
    least = space.complete({}, lambda decision: decision.choices[0])
    archs = [space.widest(), least, *(space.sample(drawn) for _ in range(members - 2))]
    nested = NestedNetwork(space).eval()
    return make_family(run / "family", nested, opened.bundle, archs, opened.data, batches=2)


def member(macs: int, top1: float, **known: Any) -> Member:
    """Return a member of these costs."""
    return Member(Architecture({"width": macs}), macs // 10, macs, {"top1": top1}, **known)


def timed_at(ms: float, **changes: Any) -> dict[str, Any]:
    """Return METRICS.latency_ms of a median time."""
    times = dict.fromkeys(("p10", "p50", "p90", "p99", "min", "cpu_p50"), ms)
    return {
        **times,
        "runs": 9,
        "threads": 1,
        "batch": 1,
        "provider": "CPUExecutionProvider",
        "contended": False,
    } | changes


def with_members(family: Family, *members: Member) -> Family:
    """Return a family of other members."""
    return replace(family, members=members)


def edited(run: Path, **changes: Any) -> None:
    """Change keys of family.json."""
    file = run / "family" / INDEX
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
