"""Changes of a model's modules that a bundle makes again when it is opened: one file each.

A new transform is one new file in this package: a `Transform` subclass with a `kind: Literal["name"]` field and the
method `apply`, entered with `@transforms.register("name")`. A third party's package does the same in a module of its
own.
"""

from __future__ import annotations

from torch import nn

from compress.core.config import Config
from compress.core.registry import Registry
from compress.core.tensors import Inputs


class Transform(Config):
    """The base of every transform: a change of the module tree that depends on its fields and the model alone.

    The fields are what a bundle keeps of it, as JSON: which layers it takes, of which sizes the new ones are. What
    was decided from weights or data (a rank, an order) is such a field; values of weights are none, they are in the
    bundle's weights.
    """

    kind: str

    def apply(self, model: nn.Module, example_inputs: Inputs) -> nn.Module:
        """Return the changed model: its parameters and buffers of the right names and shapes, of any values.

        `model` is used up: it may be what is returned, or a part of it. `example_inputs` is one sample (1, ...) such
        as the model takes.

        Raises:
            InputError: the model is none that it was made for; the layer is named.
        """
        raise NotImplementedError

    def then(self, later: Transform) -> Transform | None:
        """Return the one transform that does this one and afterwards `later`; None where there is none."""
        return None


transforms: Registry[type[Transform]] = Registry("transform", home="compress.transforms", base=Transform)
