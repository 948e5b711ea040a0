"""The vision models of transformers (extra `huggingface`): by type and config, or out of a directory or the hub."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compress.core.errors import InputError, is_out_of_memory, reason_of
from evaluators.tasks import Task, TaskConfig
from evaluators.tasks import tasks as known_tasks
from spaces.checkpoint import LoadReport
from spaces.shapes import as_argument, pair, sides_of, wished
from spaces.sources.construct import downloading, merged, refused, resolved
from spaces.sources.huggingface.wrapped import Detector, Logits, QueriedMasks
from spaces.zoo import BuiltModel, ModelConfig, Source, agree, sources, unknown_name

SIDE, DETECTED_SIDE = 224, 640
"""Pixels a side where neither config nor data say any."""
_LEFT_OUT = (
    "architectures", "transformers_version", "_name_or_path", "id2label", "label2id", "dtype", "torch_dtype",
    "use_pretrained_backbone",
)  # fmt: skip
"""Of a config file: what says nothing about the layers."""


@dataclass(frozen=True)
class Form:
    """Models of one kind.

    Attributes:
        task: that they are for.
        known: the table of transformers that names their classes by model type.
        auto: the class of transformers that builds them.
        wrapped: makes the module that the task knows of one and its number of labels.
    """

    task: str
    known: str
    auto: str
    wrapped: Callable[[nn.Module, int], nn.Module]

    def types(self) -> list[str]:
        """Return the model types that there are."""
        from transformers.models.auto import modeling_auto

        return [name for name in getattr(modeling_auto, f"MODEL_FOR_{self.known}_MAPPING_NAMES") if self._fits(name)]

    def _fits(self, name: str) -> bool:
        return self.known != "UNIVERSAL_SEGMENTATION" or name in ("mask2former", "maskformer")


FORMS = (
    Form("classification", "IMAGE_CLASSIFICATION", "AutoModelForImageClassification", lambda model, _: Logits(model)),
    Form("segmentation", "SEMANTIC_SEGMENTATION", "AutoModelForSemanticSegmentation", lambda model, _: Logits(model)),
    Form(
        "segmentation",
        "UNIVERSAL_SEGMENTATION",
        "AutoModelForUniversalSegmentation",
        lambda model, _: QueriedMasks(model),
    ),
    Form("detection", "OBJECT_DETECTION", "AutoModelForObjectDetection", Detector),
)


@sources.register("huggingface")
class HuggingFaceSource(Source):
    """transformers' models: a model type with a config in kwargs, or a directory or name of the hub with a config.

    Weights are read from safetensors alone, and no code that lies beside them is run.
    """

    published = sized = True

    def names(self) -> Sequence[str]:
        """Return the model types; none where transformers is not installed."""
        if importlib.util.find_spec("transformers") is None:
            return []
        return sorted({name for form in FORMS for name in form.types()})

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the name, that transformers is missing, and a type that has no weights."""
        if importlib.util.find_spec("transformers") is None:
            yield "source", "huggingface needs the extra: pip install 'compress[huggingface]'"
            return
        folder, types = Path(config.name).expanduser(), self.names()
        if config.name in types:
            if config.pretrained:
                yield "pretrained", f"{config.name!r} is a type of models; name a directory or a model of the hub"
        elif folder.is_dir():
            if not (folder / "config.json").is_file():
                yield "name", f"{config.name!r} holds no config.json, as transformers' save_pretrained writes it"
        elif config.name.count("/") != 1 or config.name.startswith((".", "/", "~")):
            yield "name", unknown_name("huggingface", config.name, types) + "; or a directory, or owner/name of the hub"

    def task_of(self, config: ModelConfig) -> TaskConfig:
        """Return the task of the class that a config file names, else the first that the type has models for."""
        found = _opened(config)
        named = " ".join(getattr(found, "architectures", None) or ())
        for word, task in (("Segmentation", "segmentation"), ("ObjectDetection", "detection")):
            if word in named:
                return known_tasks.get(task)()  # type: ignore[call-arg]
        form = next((form for form in FORMS if found.model_type in form.types()), FORMS[0])
        return known_tasks.get(form.task)()  # type: ignore[call-arg]

    def misfit(self, config: ModelConfig, task: TaskConfig) -> str | None:
        """Return that the type has no models for a task that others have; None where it is not known by its name."""
        if config.name not in self.names():
            return None
        return _misfit(config.name, task.name)

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build it with `num_labels`, and with the image size and the channels where its config has them."""
        own = _opened(config)
        if problem := _misfit(own.model_type, task.name):
            raise InputError(f"model.name: {problem}")
        form = _form(own.model_type, task.name)
        kwargs = {"num_labels": own.num_labels} | merged(
            config, _plain(own, config), num_labels=wished(task.num_outputs)
        )
        kwargs = _sized(kwargs, own, task, config)
        with refused(config, kwargs):
            made = _config(own.model_type, kwargs)
            model, report = _model(form, made, config)
        labels = int(made.num_labels)
        side = DETECTED_SIDE if form.task == "detection" else SIDE
        sides = pair(getattr(made, "image_size", None) or sides_of(task) or side)
        shape = (int(_part(made, "num_channels") or 3), *sides)
        fixed = hasattr(made, "image_size") or config.input_size is not None
        cfg = _preprocessing(config) | {"input_size": shape, "fixed_input_size": fixed}
        fitted = task.config.of_model(labels, shape)
        named = config.model_copy(update={"name": own.model_type})
        return resolved(named, kwargs, form.wrapped(model, labels), fitted, report, cfg)


def _form(model_type: str, task: str) -> Form:
    """Return how models of a type are built for a task; classifiers stand for tasks without models of their own."""
    own = [form for form in FORMS if form.task == task] or [FORMS[0]]
    return next(form for form in own if model_type in form.types())


def _misfit(model_type: str, task: str) -> str | None:
    own = [form for form in FORMS if form.task == task] or [FORMS[0]]
    if any(model_type in form.types() for form in own):
        return None
    has = dict.fromkeys(form.task for form in FORMS if model_type in form.types())
    others = [name for form in own for name in form.types()]
    told = f"it has {model_type!r} for task {', '.join(has)}" if has else f"{model_type!r} is none of its vision models"
    return f"transformers has no such model for task {task}; {told}; allowed: {', '.join(others)}"


def _opened(config: ModelConfig) -> Any:
    """Return the config of transformers that the name stands for; of a type, with its defaults."""
    from transformers import AutoConfig

    if config.name in HuggingFaceSource().names():
        return AutoConfig.for_model(config.name)
    folder = Path(config.name).expanduser()
    try:
        with downloading(config):
            where = str(folder) if folder.is_dir() else config.name
            return AutoConfig.from_pretrained(where, trust_remote_code=False, local_files_only=folder.is_dir())
    except InputError:
        if not folder.is_dir():
            raise
        raise InputError(f"model.name: the config.json of {config.name!r} is none that transformers knows") from None


def _plain(own: Any, config: ModelConfig) -> dict[str, Any]:
    """Return what a config file says of the layers, under what the recipe says; of a type only the latter."""
    if config.name == own.model_type:
        return dict(config.kwargs)
    written = json.loads(json.dumps(_without(own.to_diff_dict()), default=str))
    return {**written, **config.kwargs}


def _without(value: Any, inner: bool = False) -> Any:
    if not isinstance(value, Mapping):
        return value
    left_out = _LEFT_OUT if inner else (*_LEFT_OUT, "model_type")
    return {name: _without(each, True) for name, each in value.items() if name not in left_out}


def _config(model_type: str, kwargs: Mapping[str, Any]) -> Any:
    """Return a config from which nothing is downloaded."""
    from transformers import AutoConfig

    if "backbone_config" in kwargs:  # before version 5 a default name of a backbone stood beside it
        kwargs = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False, **kwargs}
    found: Any = AutoConfig.for_model(model_type, **kwargs)
    parts: tuple[Any, ...] = (found, getattr(found, "backbone_config", None))
    for part in parts:
        if getattr(part, "use_pretrained_backbone", False):
            part.use_pretrained_backbone = False
    found.architectures = found.architectures or []  # transformers chooses by it where a type has several classes
    return found


def _sized(kwargs: dict[str, Any], own: Any, task: Task, config: ModelConfig) -> dict[str, Any]:
    """Return the arguments with image size and channels of the data, where the config has such."""
    sides, channels = sides_of(task), wished(task.in_chans)
    if channels is not None and hasattr(own, "num_channels") and (channels != own.num_channels or config.kwargs):
        kwargs = merged(config, kwargs, num_channels=channels)
    if sides is None or not hasattr(own, "image_size"):
        return kwargs
    if config.pretrained:
        agree("model.name", as_argument(pair(own.image_size)), as_argument(sides), "pixels a side: data.image_size")
        return kwargs
    if "image_size" in config.kwargs:
        return merged(config, kwargs, image_size=as_argument(sides))
    return kwargs | {"image_size": as_argument(sides)}


def _model(form: Form, made: Any, config: ModelConfig) -> tuple[nn.Module, LoadReport | None]:
    """Return the model of a config, with the weights that lie beside its file where the recipe asks for them."""
    import transformers

    auto: Any = getattr(transformers, form.auto)
    if not config.pretrained:
        model: nn.Module = auto.from_config(made)
        return model, None
    folder = Path(config.name).expanduser()
    where = str(folder) if folder.is_dir() else config.name
    try:
        model, told = auto.from_pretrained(
            where,
            config=made,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=folder.is_dir(),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"model.pretrained: {config.name!r} has no weights in safetensors that can be read ({reason_of(error)}); "
            "pickles are not opened: save them by save_pretrained(..., safe_serialization=True)"
        ) from error
    replaced = sorted(_names(told["mismatched_keys"]))
    body = [name for name in replaced if not _of_labels(told["mismatched_keys"], name, int(made.num_labels))]
    missing = sorted(name for name in _names(told["missing_keys"]) if name not in replaced)
    if body or len(missing) > len(model.state_dict()) // 2:
        absent = f"{len(missing)} tensors are missing, such as {(missing or body)[0]!r}"
        what = f"{body[0]!r} has another shape" if body else absent
        raise InputError(f"model.pretrained: the weights of {config.name!r} do not fit its config: {what}")
    matched = len(model.state_dict()) - len(replaced) - len(missing)
    unexpected = sorted(_names(told["unexpected_keys"]))
    return model, LoadReport(f"huggingface {config.name}", matched, missing, unexpected, replaced=replaced)


def _names(keys: Any) -> set[str]:
    return {key if isinstance(key, str) else str(key[0]) for key in keys}


def _of_labels(keys: Any, name: str, labels: int) -> bool:
    """Return whether a tensor of another shape is of a head: as wide as there are labels, or one more."""
    shapes = next((key for key in keys if not isinstance(key, str) and key[0] == name), None)
    return shapes is None or int(next(iter(shapes[2]))) in (labels, labels + 1)


def _part(made: Any, name: str) -> Any:
    """Return an attribute of the config, or of its backbone's."""
    return getattr(made, name, None) or getattr(getattr(made, "backbone_config", None), name, None)


def _preprocessing(config: ModelConfig) -> dict[str, Any]:
    """Return mean, std and interpolation that lie beside published weights; nothing where there are none."""
    file = Path(config.name).expanduser() / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model.name: {str(file)!r} cannot be read ({reason_of(error)})") from error
    found = {"mean": told.get("image_mean"), "std": told.get("image_std")}
    return {**found, "interpolation": "bicubic" if told.get("resample") == 3 else "bilinear"}
