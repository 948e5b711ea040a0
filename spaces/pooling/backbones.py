"""Backbones by name: the paper's residual networks, and any model of timm or torchvision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from compress.core.errors import InputError, did_you_mean
from evaluators.tasks import Task
from spaces.pooling.moves import How
from spaces.pooling.resnet import RESNET18, RESNET20, RESNET50, RESNET50_LARGE, ResNet, ResNetPlan
from spaces.space import task_of


@dataclass(frozen=True)
class Backbone:
    """A network whose halvings are moved.

    Attributes:
        create: makes it for a task, as published.
        task: what it is made for where nobody says.
        how: how a unit halves where nobody says; None: by stride where every unit can.
        plan: what its cost is computed from; None: measured.
    """

    create: Callable[[Task], nn.Module]
    task: Task
    how: How | None = None
    plan: ResNetPlan | None = None


def _of_plan(plan: ResNetPlan, how: How, task: Task) -> Backbone:
    return Backbone(lambda wanted: ResNet(plan, wanted.num_outputs, wanted.in_chans), task, how, plan)


PUBLISHED = {
    "resnet20": _of_plan(RESNET20, "max_pool", task_of(10, 3, 32)),
    "resnet18": _of_plan(RESNET18, "stride", task_of(10, 3, 32)),
    "resnet50": _of_plan(RESNET50, "stride", task_of(100, 3, 32)),
    "resnet50_224": _of_plan(RESNET50_LARGE, "stride", task_of(101, 3, 224)),
}


def open_backbone(name: str) -> Backbone:
    """Return the backbone called `name`, `timm:NAME` or `torchvision:NAME`; InputError for an unknown one."""
    source, colon, model = name.partition(":")
    if not colon and name in PUBLISHED:
        return PUBLISHED[name]
    if colon and source in ("timm", "torchvision"):
        return (_timm if source == "timm" else _torchvision)(model)
    allowed = f"{', '.join(PUBLISHED)}, timm:NAME or torchvision:NAME"
    raise InputError(f"got {name!r}; allowed {allowed}{did_you_mean(name, PUBLISHED)}")


def _timm(name: str) -> Backbone:
    import timm

    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    published = timm.models.get_pretrained_cfg(name)
    size = published.input_size[-1] if published else 224
    return Backbone(partial(_create_timm, name), task_of(1000, 3, size))


def _create_timm(name: str, task: Task) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=task.num_outputs, in_chans=task.in_chans)
    return network


def _torchvision(name: str) -> Backbone:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise InputError(f"torchvision has no model {name!r}{did_you_mean(name, names)}")
    return Backbone(partial(_create_torchvision, name), task_of(1000, 3, 224))


def _create_torchvision(name: str, task: Task) -> nn.Module:
    import torchvision

    if task.in_chans != 3:
        raise InputError(f"in_chans: got {task.in_chans}; torchvision's models take 3 channels")
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=task.num_outputs)
    return network
