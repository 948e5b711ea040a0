"""torchvision's detectors: Faster R-CNN, RetinaNet, FCOS, SSD."""

from __future__ import annotations

import re

from torch import nn

from evaluators.tasks import Task
from spaces.shapes import sides_of, wished
from spaces.sources.construct import merged, refused, resolved
from spaces.sources.torchvision.kind import Kind, published
from spaces.zoo import BuiltModel, ModelConfig

CLASSES, SIDE = 91, 800
"""Of the published weights: COCO's classes with the background, and the shorter side of its images in pixels."""
HEADS = ("roi_heads.box_predictor.", "head.classification_head.")
"""Where the names begin of layers whose width hangs on the number of classes."""
OTHER_TARGETS = ("keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
"""Detectors that learn from more than boxes."""
WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Detectors whose published weights are for batch norms that add nothing to the variance."""


def build(config: ModelConfig, task: Task) -> BuiltModel:
    """Build a detector with `num_classes`, which count the background, that takes images at the size they have.

    Detectors scale images to a size of their own before all else: to that of the images, unless `min_size` or
    `max_size` say otherwise; SSD always to 300 or 320 pixels. They normalise them, too. The backbone's own weights
    are never downloaded: those of the whole detector are, with `pretrained`.
    """
    import torchvision

    sides, own = sides_of(task), re.search(r"(?<=ssd)300|320", config.name)
    kwargs = merged(config, num_classes=wished(task.num_outputs))
    kwargs.setdefault("num_classes", CLASSES)
    if sides is not None and not config.name.startswith("ssd") and not {"min_size", "max_size"} & set(kwargs):
        kwargs |= {"min_size": min(sides), "max_size": max(sides)}
    with refused(config, kwargs):
        module = torchvision.models.get_model(config.name, **{"weights": None, "weights_backbone": None, **kwargs})
    report = published(module, config, other_widths=HEADS)
    if report is not None and config.name in WITHOUT_EPSILON:
        _without_epsilon(module)
    side = int(own.group()) if own else SIDE
    shape = (3, *(sides or (side, side)))
    cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}
    cfg |= {"input_size": shape, "fixed_input_size": config.input_size is not None}
    return resolved(config, kwargs, module, task.config.of_model(int(kwargs["num_classes"]), shape), report, cfg)


def _without_epsilon(module: nn.Module) -> None:
    """Take from every running variance what its batch norm adds to it."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_var.sub_(layer.eps)


DETECTION = Kind("detection", "torchvision.models.detection", build, without=OTHER_TARGETS)
