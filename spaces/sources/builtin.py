"""The CIFAR ResNets that come with the toolkit."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.tasks import Task
from spaces import cifar_resnet
from spaces.shapes import sides_of, wished
from spaces.sources.construct import merged, refused, resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, sources


@sources.register("builtin")
class BuiltinSource(Source):
    """The residual networks of He et al. for CIFAR, by their depth."""

    def names(self) -> Sequence[str]:
        """Return cifar_resnet20 to cifar_resnet110."""
        return [f"cifar_resnet{depth}" for depth in cifar_resnet.DEPTHS]

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build it with `num_classes` and `in_chans`."""
        kwargs = merged(config, num_classes=wished(task.num_outputs), in_chans=wished(task.in_chans))
        depth = int(config.name.removeprefix("cifar_resnet"))
        with refused(config, kwargs):
            module = cifar_resnet.cifar_resnet(depth, **kwargs)
        shape = (module.conv1.in_channels, *(sides_of(task) or (32, 32)))
        cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
        return resolved(config, kwargs, module, task.config.of_model(module.num_classes, shape), None, cfg)
