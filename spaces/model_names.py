"""The names of models that each source knows, and what can be told to be wrong with one before it is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.core.errors import did_you_mean
from spaces import cifar_resnet
from spaces.registry import space_names

_RESERVED = {
    "pretrained": "is no argument here; say model.pretrained",
    "weights": "is no argument here; say model.pretrained, or model.checkpoint for weights in a file",
    "checkpoint_path": "is no argument here; say model.checkpoint, which is read without unpickling",
    "features_only": "makes a model of feature maps without logits; write a python model around it",
}


def model_names(source: str = "timm") -> list[str]:
    """Return the names that `source` knows; empty for sources without a list."""
    if source == "space":
        return space_names()
    if source == "timm":
        import timm

        return list(timm.list_models())
    if source == "torchvision":
        import torchvision

        return list(torchvision.models.list_models(module=torchvision.models))
    return [f"cifar_resnet{depth}" for depth in cifar_resnet.DEPTHS] if source == "builtin" else []


def problems_of(source: str, name: str, pretrained: bool, kwargs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key below `model`, sentence) for what is wrong with the name and the names of arguments of a model."""
    problem = _name_problem(source, name)
    if problem:
        yield "name", problem
    if pretrained and source in ("python", "builtin", "space"):
        yield "pretrained", f"{source} models have no published weights; give model.checkpoint"
    if source in ("timm", "torchvision"):
        for key in kwargs:
            if key in _RESERVED and kwargs[key] not in (False, None):
                yield f"kwargs.{key}", _RESERVED[key]
    if source == "space":
        for key in sorted(set(kwargs) - {"preset", "arch", "options"}):
            yield f"kwargs.{key}", "a model of a space takes preset, arch and options"


def _name_problem(source: str, name: str) -> str:
    if source == "python":
        module, _, attribute = name.partition(":")
        return "" if module and attribute else f"got {name!r}; a python model is written package.module:callable"
    if source == "bundle":
        there = any((Path(name) / part / "bundle.json").is_file() for part in ("", "bundle"))
        return "" if there else f"{name!r} holds no bundle.json; a bundle or a run directory is needed"
    if source == "timm" and _is_timm(name.partition(".")[0]):
        return _tag_problem(name)
    names, base = model_names(source), name.partition(".")[0] if source == "timm" else name
    if base not in names and not (source == "space" and name.startswith("nni:")):
        allowed = ", ".join(names) if len(names) < 20 else f"{len(names)} names, see `compress ls models`"
        return f"{source} has no model {name!r}; allowed: {allowed}{did_you_mean(base, names)}"
    return ""


def _is_timm(name: str) -> bool:
    import timm

    return bool(timm.is_model(name))  # old names too, which no list has


def _tag_problem(name: str) -> str:
    """Return what is wrong with the part of a name of timm's after the dot, which names published weights."""
    import timm

    base, _, tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{base}.*", pretrained=True)]
    if not tag or tag in tags:
        return ""
    allowed = f"allowed: {', '.join(tags)}" if tags else "it has none"
    return f"timm has no weights {tag!r} of {base!r}; {allowed}{did_you_mean(tag, tags)}"
