"""Architectures of the search spaces as models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from compress.core.errors import InputError
from evaluators.tasks import DEFAULT, Task, TaskConfig
from spaces.registry import create, open_preset, read_architecture, space_class, spaces
from spaces.shapes import as_argument, sides_of
from spaces.sources.construct import resolved
from spaces.zoo import BuiltModel, ModelConfig, Source, sources

if TYPE_CHECKING:
    from spaces.architecture import Architecture
    from spaces.space import Space


@sources.register("space")
class SpaceSource(Source):
    """An architecture of a search space, named by a preset, its choices, its published code or a JSON file."""

    headless = True

    def names(self) -> Sequence[str]:
        """Return the names of the spaces."""
        return spaces.names()

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the space's name and the names of arguments."""
        if not config.name.startswith("nni:"):
            yield from super().problems(config)
        for key in sorted(set(config.kwargs) - {"preset", "arch", "options"}):
            yield f"kwargs.{key}", "a model of a space takes preset, arch and options"

    def task_of(self, config: ModelConfig) -> TaskConfig:
        """Return what the space's networks are for."""
        if space_class(config.name).for_task is None:
            return DEFAULT
        return _architecture(config)[0].default_task.config

    def look(self, config: ModelConfig) -> None:
        """Read the architecture, unless the space has to build a model first to know its decisions."""
        if "model" not in (config.kwargs.get("options") or {}):
            _architecture(config)

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Build the architecture at the size that it has by itself, or that is asked for."""
        space, arch = _architecture(config)
        side = as_argument(sides_of(task))
        if isinstance(side, list):
            raise InputError(f"model.input_size: networks of a search space take square images; got {side}")
        size = space.input_size(arch, side)
        sizes = space.task(task.num_outputs, task.in_chans, size)
        shape = sizes.input_size
        task = task.config.of_model(sizes.num_outputs, shape)
        module = space.build(arch, task)
        options = space.to_dict(arch)["options"]
        if "model" in options:  # a space of another model's widths, whose weights have no part in what is built
            options["model"] |= {"pretrained": False, "checkpoint": None}
        kwargs = {"options": options, "arch": dict(arch)}
        cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None}
        sized = config.model_copy(update={"input_size": shape})
        return resolved(sized, kwargs, module, task, None, cfg)


def _architecture(config: ModelConfig) -> tuple[Space, Architecture]:
    """Return the architecture that `model.kwargs` names, by a preset, a file, its choices or its code."""
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
