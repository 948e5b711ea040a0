"""The CIFAR ResNets that come with the toolkit."""

from __future__ import annotations

from collections.abc import Sequence

from spaces import cifar_resnet
from spaces.sources.construct import merged, refused, resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, Wishes, sources


@sources.register("builtin")
class BuiltinSource(Source):
    """The residual networks of He et al. for CIFAR, by their depth."""

    def names(self) -> Sequence[str]:
        """Return cifar_resnet20 to cifar_resnet110."""
        return [f"cifar_resnet{depth}" for depth in cifar_resnet.DEPTHS]

    def build(self, config: ModelConfig, wishes: Wishes) -> BuiltModel:
        """Build it with `num_classes` and `in_chans`."""
        kwargs = merged(config, num_classes=wishes.num_classes, in_chans=wishes.in_chans)
        depth = int(config.name.removeprefix("cifar_resnet"))
        with refused(config, kwargs):
            module = cifar_resnet.cifar_resnet(depth, **kwargs)
        shape = (module.conv1.in_channels, *(wishes.sides or (32, 32)))
        cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
        return resolved(config, kwargs, module, module.num_classes, shape, None, cfg)
