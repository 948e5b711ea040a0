"""Models by name: timm, torchvision, the user's own modules, the CIFAR ResNets, and points of the search spaces."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean, is_out_of_memory, reason_of
from compress.core.wrappers import unwrap_all
from spaces import cifar_resnet
from spaces.checkpoint import LoadReport, classifier_names, load_checkpoint, load_weights
from spaces.model_names import problems_of
from spaces.registry import create, open_preset, read_architecture
from spaces.shapes import Shape, as_argument, check_forward, pair
from spaces.user_code import import_module

if TYPE_CHECKING:
    from spaces.architecture import Architecture
    from spaces.space import Space

_OF_IMAGES = ("timm", "torchvision", "builtin", "space")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}


class ModelConfig(Config):
    """The network that a run starts from."""

    source: Literal["timm", "torchvision", "python", "builtin", "space", "bundle"] = Field(
        "timm",
        description="where the name is looked up; python: package.module:callable; space: a search space, with the "
        "kwargs preset, or arch (choices, published code or JSON file) and options; bundle: a directory",
    )
    name: str = Field(
        min_length=1, description="model name, package.module:callable, search space, or bundle or run directory"
    )
    pretrained: bool = Field(False, description="download the published weights (timm and torchvision)")
    checkpoint: str | None = Field(None, description="weights to load: .safetensors, or .pth read without unpickling")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments for the model's constructor")
    input_size: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = Field(
        None,
        description="channels, height, width (a python model without images takes any sizes after the batch); null: "
        "the model's own or the data's",
    )

    @model_validator(mode="after")
    def _images(self) -> Self:
        if self.input_size is not None and len(self.input_size) != 3 and self.source in _OF_IMAGES:
            raise ValueError(f"input_size: {self.source} models take channels, height, width; got {self.input_size}")
        return self


@dataclass
class BuiltModel:
    """A module with what is needed to rebuild it and to feed it; `num_classes` is None where it gives no logits.

    `config` is resolved: building it again, with no other argument, gives the same architecture without weights.
    `pretrained_cfg` has `input_size` as built, `fixed_input_size` (true where no other image size works) and, for
    models with published preprocessing, timm's keys `mean`, `std`, `interpolation`, `crop_pct`.
    """

    module: nn.Module
    config: ModelConfig
    num_classes: int | None
    input_size: Shape
    load_report: LoadReport | None
    pretrained_cfg: dict[str, Any]


@dataclass
class _Wishes:
    """What the data asks of the model; None where it does not care."""

    num_classes: int | None
    sides: Shape | None
    in_chans: int | None


def build_model(
    config: ModelConfig,
    num_classes: int | None = None,
    image_size: int | None = None,
    in_chans: int | None = None,
    seed: int = 0,
) -> BuiltModel:
    """Build the model of `config`, in eval mode, fitted to the data's classes, image size (pixels) and channels.

    Initial weights are drawn from `seed`; the global generator is left as it was.
    Raises InputError, naming the recipe's key, for an unknown name, an argument that the constructor refuses,
    a module that is none, or weights that do not fit.
    """
    wishes = _Wishes(num_classes, None if image_size is None else pair(image_size), in_chans)
    if config.input_size is not None:
        channels, *sides = config.input_size
        _agree("model.input_size", channels, in_chans, "data.channels")
        _agree("model.input_size", sides, image_size, "pixels a side: data.image_size")
        wishes = _Wishes(num_classes, tuple(sides), channels)
    if config.source == "bundle":
        raise ValueError("a bundle is opened by compress.bundle.open_model, not built")
    wrong = list(problems_of(config.source, config.name, config.pretrained, config.kwargs))
    if wrong:
        raise InputError(*(f"model.{key}: {text}" for key, text in wrong))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built = _BUILDERS[config.source](config, wishes)
    if (wishes.sides is not None or num_classes is not None) and config.source != "python":
        check_forward(built.module.eval(), built.input_size, config.name, num_classes)
    if config.checkpoint is not None:
        built.load_report = load_checkpoint(built.module, config.checkpoint)
    built.module.eval()
    return built


# Each builder takes (config, wishes) and returns the module without the user's checkpoint.


def _timm(config: ModelConfig, wishes: _Wishes) -> BuiltModel:
    import timm

    published = timm.models.get_pretrained_cfg(config.name)
    kwargs = _merged(config, num_classes=wishes.num_classes, in_chans=wishes.in_chans)
    fixed = bool(published and published.fixed_input_size)
    if fixed:
        kwargs = _merged(config, kwargs, img_size=as_argument(wishes.sides))
    with _refused(config, kwargs):
        module = timm.create_model(config.name, pretrained=False, **kwargs)
    cfg: dict[str, Any] = dict(vars(module)["pretrained_cfg"])
    sides = pair(kwargs.get("img_size") or wishes.sides or cfg["input_size"][1:])
    channels = int(kwargs.get("in_chans", cfg["input_size"][0]))
    num_classes = kwargs.get("num_classes", getattr(module, "num_classes", None))
    kwargs |= {"in_chans": channels} | ({} if num_classes is None else {"num_classes": num_classes})
    if fixed:
        kwargs["img_size"] = as_argument(sides)
    report = None
    if config.pretrained:
        with _downloading(config):
            module = timm.create_model(config.name, pretrained=True, **kwargs)
        heads = classifier_names(module) if cfg["num_classes"] != num_classes else ()
        replaced = [name for name in module.state_dict() if name.rpartition(".")[0] in heads]
        report = LoadReport(f"timm {config.name}", len(module.state_dict()) - len(replaced), replaced=replaced)
    shape = (channels, *sides)
    cfg |= {"input_size": shape, "fixed_input_size": fixed or config.input_size is not None}
    return _finish(config, kwargs, module, num_classes or None, shape, report, cfg)


def _torchvision(config: ModelConfig, wishes: _Wishes) -> BuiltModel:
    import torchvision

    _agree("model.name", 3, wishes.in_chans, "channels (torchvision's models take 3)")
    takes_size = "vit" in config.name or "maxvit" in config.name
    size_key = "input_size" if config.name == "maxvit_t" else "image_size"
    kwargs = _merged(config, num_classes=wishes.num_classes)
    if config.name == "maxvit_t" and wishes.sides is not None:
        kwargs.setdefault("input_size", wishes.sides)
    elif takes_size:
        side = as_argument(wishes.sides)
        if isinstance(side, list):
            raise InputError(f"model.input_size: {config.name} of torchvision takes square images; got {side}")
        kwargs = _merged(config, kwargs, image_size=side)
    kwargs.setdefault("num_classes", 1000)
    with _refused(config, kwargs):
        module = torchvision.models.get_model(config.name, weights=None, **kwargs)
    shape = (3, *pair(kwargs.get(size_key, wishes.sides or 224)))
    report = None
    if config.pretrained:
        with _downloading(config):
            state = torchvision.models.get_model_weights(config.name).DEFAULT.get_state_dict(progress=False)
        report = load_weights(module, state, f"torchvision {config.name}", "model.pretrained")
    fixed = takes_size or config.input_size is not None
    cfg = _IMAGENET | {"input_size": shape, "fixed_input_size": fixed, "crop_pct": 0.875}
    return _finish(config, kwargs, module, int(kwargs["num_classes"]), shape, report, cfg)


def _builtin(config: ModelConfig, wishes: _Wishes) -> BuiltModel:
    kwargs = _merged(config, num_classes=wishes.num_classes, in_chans=wishes.in_chans)
    depth = int(config.name.removeprefix("cifar_resnet"))
    with _refused(config, kwargs):
        module = cifar_resnet.cifar_resnet(depth, **kwargs)
    shape = (module.conv1.in_channels, *(wishes.sides or (32, 32)))
    cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
    return _finish(config, kwargs, module, module.num_classes, shape, None, cfg)


def _space(config: ModelConfig, wishes: _Wishes) -> BuiltModel:
    space, arch = architecture_of(config)
    side = as_argument(wishes.sides)
    if isinstance(side, list):
        raise InputError(f"model.input_size: networks of a search space take square images; got {side}")
    size = space.input_size(arch, side)
    task = space.task(wishes.num_classes, wishes.in_chans, size)
    module = space.build(arch, task.num_classes, task.in_chans, task.img_size)
    shape = (task.in_chans, size, size)
    options = space.to_dict(arch)["options"]
    if "model" in options:  # a space of another model's widths, whose weights have no part in what is built
        options["model"] |= {"pretrained": False, "checkpoint": None}
    kwargs = {"options": options, "arch": dict(arch)}
    cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
    resolved = config.model_copy(update={"input_size": shape})
    return _finish(resolved, kwargs, module, task.num_classes, shape, None, cfg)


def architecture_of(config: ModelConfig) -> tuple[Space, Architecture]:
    """Return the architecture that `model.kwargs` of a space names, by a preset, a file, its choices or its code."""
    preset, arch = config.kwargs.get("preset"), config.kwargs.get("arch")
    options = config.kwargs.get("options") or {}
    if (preset is None) == (arch is None):
        raise InputError("model.kwargs: a model of a space is named by either preset or arch")
    if preset is not None:
        space, point = open_preset(config.name, str(preset), options)
        if point is None:
            raise InputError(f"model.kwargs.preset: {preset!r} sets up the space {config.name} but is no architecture")
        return space, point
    if isinstance(arch, str) and arch.endswith(".json"):
        return read_architecture(arch, config.name, options)
    space = create(config.name, options)
    return space, space.parse(arch)


def _python(config: ModelConfig, wishes: _Wishes) -> BuiltModel:
    factory = _import(config.name)
    kwargs = dict(config.kwargs)
    side = as_argument(wishes.sides)
    with_size = {"img_size": side, "image_size": side}
    for name, value in {"num_classes": wishes.num_classes, "in_chans": wishes.in_chans, **with_size}.items():
        if name in _parameters(factory):
            kwargs = _merged(config, kwargs, **{name: value})
    with _refused(config, kwargs):
        module = factory(**kwargs)
    if not isinstance(module, nn.Module):
        raise InputError(f"model.name: {config.name!r} returned {type(module).__name__}; a torch.nn.Module is needed")
    try:
        module = unwrap_all(module)
    except InputError as error:
        raise InputError(f"model.name: {config.name!r}: {error}") from error
    shape = (wishes.in_chans or 3, *((224, 224) if wishes.sides is None else wishes.sides))
    num_classes = check_forward(module.eval(), shape, config.name, wishes.num_classes)
    if wishes.num_classes not in (None, num_classes):
        raise InputError(
            f"model.name: {config.name!r} gives {num_classes} logits; the data has {wishes.num_classes} classes "
            "(set the number in model.kwargs)"
        )
    cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
    return _finish(config.model_copy(update={"input_size": shape}), kwargs, module, num_classes, shape, None, cfg)


_BUILDERS: dict[str, Callable[[ModelConfig, _Wishes], BuiltModel]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "builtin": _builtin,
    "space": _space,
    "python": _python,
}


def _finish(
    config: ModelConfig,
    kwargs: dict[str, Any],
    module: nn.Module,
    num_classes: int | None,
    shape: Shape,
    report: LoadReport | None,
    cfg: dict[str, Any],
) -> BuiltModel:
    resolved = config.model_copy(update={"kwargs": kwargs, "pretrained": False, "checkpoint": None})
    return BuiltModel(module, resolved, num_classes, shape, report, cfg)


def _merged(config: ModelConfig, base: Mapping[str, Any] | None = None, **wishes: Any) -> dict[str, Any]:
    """Return the constructor's arguments with the data's wishes, which may not contradict the recipe."""
    kwargs = dict(config.kwargs if base is None else base)
    for name, wish in wishes.items():
        if name in kwargs:
            _agree(f"model.kwargs.{name}", kwargs[name], wish, "as the data has it")
        elif wish is not None:
            kwargs[name] = wish
    return kwargs


def _agree(key: str, given: Any, wish: Any, what: str) -> None:
    sizes = [pair(each) if isinstance(each, int | list | tuple) else each for each in (given, wish)]
    if wish is not None and sizes[0] != sizes[1]:
        raise InputError(f"{key}: got {given!r}; the data needs {wish!r} ({what})")


@contextmanager
def _refused(config: ModelConfig, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever the constructor raises into a sentence about `model.kwargs`."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a constructor may raise anything at arguments that it does not like
        if is_out_of_memory(error):
            raise
        unknown = re.search(r"unexpected keyword argument\S* \[?'(\w+)'", str(error))
        if isinstance(error, TypeError) and unknown:
            name = unknown.group(1)
            hint = did_you_mean(name, _accepted(error))
            raise InputError(f"model.kwargs.{name}: {config.name!r} takes no argument {name!r}{hint}") from error
        reason = reason_of(error)
        given = f"with {dict(kwargs)}" if kwargs else "without arguments"
        raise InputError(f"model.kwargs: {config.name!r} cannot be built {given}: {reason}") from error


def _accepted(error: TypeError) -> list[str]:
    """Return the argument names of the classes or functions that bear the name in the message of `error`."""
    owner = str(error).split("(")[0].split(".")[0]
    owners = [getattr(module, "__dict__", {}).get(owner) for module in list(sys.modules.values())]
    return [name for found in owners if callable(found) for name in _parameters(found)]


@contextmanager
def _downloading(config: ModelConfig) -> Iterator[None]:
    """Turn a failed download (no network, no published weights) into a sentence about `model.pretrained`."""
    try:
        yield
    except Exception as error:  # the hub clients raise their own families and requests'
        reason = reason_of(error)
        raise InputError(
            f"model.pretrained: cannot get the published weights of {config.name!r} ({reason}); "
            "download them elsewhere and give model.checkpoint"
        ) from error


def _import(name: str) -> Callable[..., Any]:
    """Return the callable `package.module:callable`; the working directory is searched too."""
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's file, which may raise anything
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise InputError(f"model.name: cannot import {module_name!r}: {reason}") from error
    try:
        found = functools.reduce(getattr, attribute.split("."), found)
    except AttributeError as error:
        hint = did_you_mean(attribute, dir(found))
        raise InputError(f"model.name: {module_name!r} has no {attribute!r}{hint}") from error
    if not callable(found):
        raise InputError(f"model.name: {name!r} is a {type(found).__name__}; a callable is needed")
    return found  # type: ignore[no-any-return]


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
