"""The classifiers of torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.checkpoint import load_weights
from spaces.shapes import as_argument, pair, sides_of, wished
from spaces.sources.construct import downloading, merged, refused, reserved, resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, agree, sources

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}


@sources.register("torchvision")
class TorchvisionSource(Source):
    """torchvision's classifiers; they take three channels."""

    published = sized = True

    def names(self) -> Sequence[str]:
        """Return torchvision's list of classifiers."""
        import torchvision

        return list(torchvision.models.list_models(module=torchvision.models))

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the name, and arguments that other keys stand for."""
        yield from super().problems(config)
        yield from reserved(config)

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build it with `num_classes`, and with the image size where the constructor takes one."""
        import torchvision

        agree("model.name", 3, wished(task.in_chans), "channels (torchvision's models take 3)")
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
        report = None
        if config.pretrained:
            with downloading(config):
                state = torchvision.models.get_model_weights(config.name).DEFAULT.get_state_dict(progress=False)
            report = load_weights(module, state, f"torchvision {config.name}", "model.pretrained")
        fixed = takes_size or config.input_size is not None
        cfg = _IMAGENET | {"input_size": shape, "fixed_input_size": fixed, "crop_pct": 0.875}
        return resolved(config, kwargs, module, task.config.of_model(int(kwargs["num_classes"]), shape), report, cfg)
