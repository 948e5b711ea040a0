"""Losses that let a student learn from a teacher: one file per method, its config class next to its code.

A new loss is one new file in this package: a `LossConfig` subclass with a `loss: Literal["name"]` field and a
`combine` method, entered with `@losses.register("name")`. Modules of the package are imported when it is.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag
from torch import Tensor

from compress.core.config import Config
from compress.core.registry import Registry


class LossConfig(Config):
    """The base of every distillation loss: its settings, and how it joins the loss on the labels."""

    loss: str

    def combine(self, student: Tensor, teacher: Tensor, label_loss: Tensor) -> Tensor:
        """Return the training loss, a scalar.

        Args:
            student: logits (batch, classes) that carry gradients.
            teacher: logits (batch, classes) of the same images, without gradients.
            label_loss: the student's cross entropy on the labels (smoothed or mixed as the recipe says), a scalar.
        """
        raise NotImplementedError


losses: Registry[type[LossConfig]] = Registry("loss")


def _name_of(section: Any) -> str:
    """Return which loss a section of a recipe asks for; logit distillation where it does not say."""
    return str(section.get("loss", "kd")) if isinstance(section, dict) else str(getattr(section, "loss", section))


def _union(configs: dict[str, type[LossConfig]]) -> Any:
    """Return the type of a recipe's `distill` section: one of `configs`, told apart by `loss`."""
    if len(configs) == 1:
        return next(iter(configs.values()))
    tagged = tuple(Annotated[config, Tag(name)] for name, config in configs.items())
    return Annotated[Union[tagged], Discriminator(_name_of)]  # noqa: UP007 - a union of a computed tuple


for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    import_module(_module.name)

if TYPE_CHECKING:
    DistillConfig = LossConfig
else:
    DistillConfig = _union({name: losses.get(name) for name in losses})
