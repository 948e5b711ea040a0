"""The classifiers of torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.core.errors import InputError
from spaces.checkpoint import load_weights
from spaces.shapes import as_argument, pair
from spaces.sources.construct import downloading, merged, refused, reserved, resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, Wishes, agree, sources

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

    def build(self, config: ModelConfig, wishes: Wishes) -> BuiltModel:
        """Build it with `num_classes`, and with the image size where the constructor takes one."""
        import torchvision

        agree("model.name", 3, wishes.in_chans, "channels (torchvision's models take 3)")
        takes_size = "vit" in config.name or "maxvit" in config.name
        size_key = "input_size" if config.name == "maxvit_t" else "image_size"
        kwargs = merged(config, num_classes=wishes.num_classes)
        if config.name == "maxvit_t" and wishes.sides is not None:
            kwargs.setdefault("input_size", wishes.sides)
        elif takes_size:
            side = as_argument(wishes.sides)
            if isinstance(side, list):
                raise InputError(f"model.input_size: {config.name} of torchvision takes square images; got {side}")
            kwargs = merged(config, kwargs, image_size=side)
        kwargs.setdefault("num_classes", 1000)
        with refused(config, kwargs):
            module = torchvision.models.get_model(config.name, weights=None, **kwargs)
        shape = (3, *pair(kwargs.get(size_key, wishes.sides or 224)))
        report = None
        if config.pretrained:
            with downloading(config):
                state = torchvision.models.get_model_weights(config.name).DEFAULT.get_state_dict(progress=False)
            report = load_weights(module, state, f"torchvision {config.name}", "model.pretrained")
        fixed = takes_size or config.input_size is not None
        cfg = _IMAGENET | {"input_size": shape, "fixed_input_size": fixed, "crop_pct": 0.875}
        return resolved(config, kwargs, module, int(kwargs["num_classes"]), shape, report, cfg)
