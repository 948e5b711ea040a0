"""torchvision's networks for semantic segmentation: FCN, DeepLabV3, LR-ASPP."""

from __future__ import annotations

from evaluators.tasks import Task
from spaces.shapes import sides_of, wished
from spaces.sources.construct import merged, refused, resolved
from spaces.sources.torchvision.kind import IMAGENET, Kind, published
from spaces.zoo import BuiltModel, ModelConfig

CLASSES, SIDE = 21, 520
"""Of the published weights: COCO's images with the classes of Pascal VOC, and their shorter side in pixels."""


def build(config: ModelConfig, task: Task) -> BuiltModel:
    """Build a network with `num_classes`, and with an auxiliary head where `aux_loss` asks for one.

    The backbone's own weights are never downloaded: those of the whole network are, with `pretrained`.
    """
    import torchvision

    sides = sides_of(task)
    kwargs = merged(config, num_classes=wished(task.num_outputs))
    kwargs.setdefault("num_classes", CLASSES)
    with refused(config, kwargs):
        module = torchvision.models.get_model(config.name, **{"weights": None, "weights_backbone": None, **kwargs})
    report = published(module, config, leave_out="aux_classifier.")
    shape = (3, *(sides or (SIDE, SIDE)))
    cfg = IMAGENET | {"input_size": shape, "fixed_input_size": config.input_size is not None, "crop_pct": 1.0}
    return resolved(config, kwargs, module, task.config.of_model(int(kwargs["num_classes"]), shape), report, cfg)


SEGMENTATION = Kind("segmentation", "torchvision.models.segmentation", build)
