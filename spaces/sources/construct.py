"""What sources share: the constructor's arguments, and what goes wrong with them, in sentences."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from compress.core.errors import InputError, did_you_mean, is_out_of_memory, reason_of
from evaluators.tasks import Task
from spaces.checkpoint import LoadReport
from spaces.zoo import BuiltModel, ModelConfig, agree

_RESERVED = {
    "pretrained": "is no argument here; say model.pretrained",
    "weights": "is no argument here; say model.pretrained, or model.checkpoint for weights in a file",
    "weights_backbone": "is no argument here; say model.pretrained for the weights of the whole network, or "
    "model.checkpoint",
    "checkpoint_path": "is no argument here; say model.checkpoint, which is read without unpickling",
    "features_only": "makes a model of feature maps without logits; write a python model around it",
}


def reserved(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield (key below `model`, sentence) for arguments that other keys of the recipe stand for."""
    for key, value in config.kwargs.items():
        if key in _RESERVED and value not in (False, None):
            yield f"kwargs.{key}", _RESERVED[key]


def resolved(
    config: ModelConfig,
    kwargs: dict[str, Any],
    module: nn.Module,
    task: Task,
    report: LoadReport | None,
    cfg: dict[str, Any],
) -> BuiltModel:
    """Return the built model with the config that builds it again, without weights."""
    config = config.model_copy(update={"kwargs": kwargs, "pretrained": False, "checkpoint": None})
    return BuiltModel(module, config, task, report, cfg)


def merged(config: ModelConfig, base: Mapping[str, Any] | None = None, **wishes: Any) -> dict[str, Any]:
    """Return the constructor's arguments with the data's wishes, which may not contradict the recipe."""
    kwargs = dict(config.kwargs if base is None else base)
    for name, wish in wishes.items():
        if name in kwargs:
            agree(f"model.kwargs.{name}", kwargs[name], wish, "as the data has it")
        elif wish is not None:
            kwargs[name] = wish
    return kwargs


@contextmanager
def refused(config: ModelConfig, kwargs: Mapping[str, Any]) -> Iterator[None]:
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
    return [name for found in owners if callable(found) for name in parameters(found)]


@contextmanager
def downloading(config: ModelConfig) -> Iterator[None]:
    """Turn a failed download (no network, no published weights) into a sentence about `model.pretrained`."""
    try:
        yield
    except Exception as error:  # the hub clients raise their own families and requests'
        reason = reason_of(error)
        raise InputError(
            f"model.pretrained: cannot get the published weights of {config.name!r} ({reason}); "
            "download them elsewhere and give model.checkpoint"
        ) from error


def parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable by name; none where it does not tell."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
