from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from compress.core.errors import InputError
from evaluators.datasets.batch import Batch
from spaces.channels import ChannelSpace
from spaces.channels.narrower import Narrower
from spaces.registry import create, open_preset

RESNET = {"model": {"source": "builtin", "name": "cifar_resnet20"}, "depth": True, "widths": [0.5, 0.75, 1.0]}
VIT_MODEL = {
    "source": "timm",
    "name": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 32, "depth": 2, "num_classes": 10},
}
VIT = {"model": VIT_MODEL, "depth": True, "widths": [0.5, 1.0]}


def opened(options: dict[str, Any]) -> ChannelSpace:
    space = create("channels", options)
    assert isinstance(space, ChannelSpace)
    return space


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def smaller(space: ChannelSpace, arch: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """Return a random architecture that is nowhere wider than `arch`."""
    drawn = {decision.name: generator.choice(decision.choices) for decision in space.decisions}
    found = {name: min(drawn[name], choice) for name, choice in arch.items()}
    return dict(space.check(found, drop_untaken=True))


@pytest.mark.parametrize("options", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_network_narrowed_twice_is_the_architecture_that_the_space_builds(options: dict[str, Any]) -> None:
    space, generator = opened(options), random.Random(0)
    task = space.default_task
    module, arch = space.build(space.widest()).eval(), dict(space.widest())
    for _ in range(2):
        narrower = Narrower(space, module, arch, task, "magnitude")
        arch = smaller(space, arch, generator)
        module = narrower.narrowed(arch).eval()
        assert shapes(module) == shapes(space.build(arch))
        assert module(torch.zeros(1, 3, task.img_size, task.img_size)).shape == (1, task.num_outputs)


def test_the_units_that_stay_are_the_best_and_the_network_at_hand_is_untouched() -> None:
    space = opened({**RESNET, "depth": False})
    widest = space.widest()
    module = space.build(widest).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    width = space.widths[0]
    small = space.check({**widest, width.name: width.decision.choices[0]})
    narrower = Narrower(space, module, widest, space.default_task, "magnitude")
    part = narrower.narrowed(small).state_dict()
    scores = narrower.scores[width.groups[0]]
    best = scores.sort(descending=True, stable=True).indices[: width.decision.choices[0]].sort().values
    tensor = next(part.tensor for part in narrower.graph.group(width.groups[0]).slices if part.role == "out")
    assert torch.equal(part[tensor], before[tensor][best])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_criteria_that_need_images_get_them_and_unknown_ones_are_refused() -> None:
    space = opened({**RESNET, "depth": False})
    module = space.build(space.widest()).eval()
    generator = torch.Generator().manual_seed(0)

    def batches() -> list[Batch]:
        images = torch.randn(4, 3, 32, 32, generator=generator)
        return [Batch(images, torch.randint(10, (4,), generator=generator))]

    found = Narrower(space, module, space.widest(), space.default_task, "taylor", batches)
    assert all(torch.isfinite(scores).all() for scores in found.scores.values())
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        Narrower(space, module, space.widest(), space.default_task, "magnitud")


def test_mobilenetv3s_widths_are_its_expansions_and_its_stages_for_any_task_of_the_search() -> None:
    space, _ = open_preset("channels", "mobilenetv3-small")
    assert isinstance(space, ChannelSpace)
    names = [decision.name for decision in space.decisions]
    assert len(names) == 17 and not any("squeeze" in name for name in names)
    before = space.cost(space.widest())
    space.default_task = space.task(10, 3, 32)  # as a search sets it, by its data
    assert space.cost(space.widest())["macs"] == before["macs"] - 1024 * 990
    assert shapes(space.build(space.widest()))["classifier.weight"] == (10, 1024)
