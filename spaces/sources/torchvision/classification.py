"""torchvision's classifiers."""

from __future__ import annotations

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.shapes import as_argument, pair, sides_of, wished
from spaces.sources.construct import merged, refused, resolved
from spaces.sources.torchvision.kind import IMAGENET, Kind, published
from spaces.zoo import BuiltModel, ModelConfig


def build(config: ModelConfig, task: Task) -> BuiltModel:
    """Build a classifier with `num_classes`, and with the image size where the constructor takes one."""
    import torchvision

    sides = sides_of(task)
    takes_size = "vit" in config.name or "maxvit" in config.name
    size_key = "input_size" if config.name == "maxvit_t" else "image_size"
    kwargs = merged(config, num_classes=wished(task.num_outputs))
    if config.name == "maxvit_t" and sides is not None:
        kwargs.setdefault("input_size", sides)
    elif takes_size:
        side = as_argument(sides)
        if isinstance(side, list):
            raise InputError(f"model.input_size: {config.name} of torchvision takes square images; got {side}")
        kwargs = merged(config, kwargs, image_size=side)
    kwargs.setdefault("num_classes", 1000)
    with refused(config, kwargs):
        module = torchvision.models.get_model(config.name, weights=None, **kwargs)
    shape = (3, *pair(kwargs.get(size_key, sides or 224)))
    report = published(module, config)
    fixed = takes_size or config.input_size is not None
    cfg = IMAGENET | {"input_size": shape, "fixed_input_size": fixed, "crop_pct": 0.875}
    return resolved(config, kwargs, module, task.config.of_model(int(kwargs["num_classes"]), shape), report, cfg)


CLASSIFICATION = Kind("classification", "torchvision.models", build)
