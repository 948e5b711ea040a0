"""The models that come with the toolkit: ResNets for CIFAR, a multilayer perceptron, and a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluators.tasks import Task
from spaces import cifar_resnet
from spaces.dncnn import DnCNN
from spaces.mlp import Mlp
from spaces.shapes import as_argument, sides_of, wished
from spaces.sources.construct import merged, refused, resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, sources


@sources.register("builtin")
class BuiltinSource(Source):
    """The residual networks of He et al. for CIFAR, by their depth, `mlp`, and `dncnn`, which cleans images."""

    def names(self) -> Sequence[str]:
        """Return cifar_resnet20 to cifar_resnet110, mlp and dncnn."""
        return [*(f"cifar_resnet{depth}" for depth in cifar_resnet.DEPTHS), "mlp", "dncnn"]

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build it with `num_classes` and `in_chans`; the perceptron with `img_size`, the denoiser `in_chans` alone."""
        if config.name == "dncnn":
            return self._dncnn(config, task)
        kwargs = merged(config, num_classes=wished(task.num_outputs), in_chans=wished(task.in_chans))
        return self._mlp(config, task, kwargs) if config.name == "mlp" else self._resnet(config, task, kwargs)

    def _resnet(self, config: ModelConfig, task: Task, kwargs: dict[str, Any]) -> BuiltModel:
        depth = int(config.name.removeprefix("cifar_resnet"))
        with refused(config, kwargs):
            module = cifar_resnet.cifar_resnet(depth, **kwargs)
        shape = (module.conv1.in_channels, *(sides_of(task) or (32, 32)))
        cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
        return resolved(config, kwargs, module, task.config.of_model(module.num_classes, shape), None, cfg)

    def _dncnn(self, config: ModelConfig, task: Task) -> BuiltModel:
        kwargs = merged(config, in_chans=wished(task.in_chans))
        with refused(config, kwargs):
            module = DnCNN(**kwargs)
        shape = (module.in_chans, *(sides_of(task) or (32, 32)))
        cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
        return resolved(config, kwargs, module, task.config.of_model(module.in_chans, shape), None, cfg)

    def _mlp(self, config: ModelConfig, task: Task, kwargs: dict[str, Any]) -> BuiltModel:
        kwargs = merged(config, kwargs, img_size=as_argument(sides_of(task)))
        with refused(config, kwargs):
            module = Mlp(**kwargs)
        cfg = {"input_size": module.input_size, "fixed_input_size": True}
        return resolved(config, kwargs, module, task.config.of_model(module.num_classes, module.input_size), None, cfg)
