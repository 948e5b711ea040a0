"""The space that a recipe names."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from textwrap import shorten
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from compress.core.batch_norm import enough_values
from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean, in_one_line
from compress.core.registry import is_ours
from compress.core.sections import OrName, ReadAnew
from compress.core.tensors import call
from evaluators.cost import count_macs, count_params
from evaluators.datasets import Data, DataConfig, Loader
from evaluators.tasks import DEFAULT, Task, TaskConfig
from evaluators.tasks.opened import opened
from spaces.registry import create, open_preset, presets, space_class, spaces
from spaces.space import Space
from spaces.zoo import ModelConfig


class SpaceConfig(Config):
    """The space that is searched."""

    name: str = Field(description="a name of `compress ls spaces`, or nni:package.module.Class")
    preset: str | None = Field(None, description="a named set of the space's options")
    options: dict[str, Any] = Field({}, description="options of the space, see `compress space NAME`")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not name.startswith("nni:"):
            known = spaces.names()
            if name not in known:
                raise ValueError(f"unknown space; got {name!r}; allowed {', '.join(known)}{did_you_mean(name, known)}")
        return name

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str | None, info: ValidationInfo) -> str | None:
        if preset is not None and "name" in info.data:
            name = info.data["name"]
            known = presets(name)
            if preset not in known:
                allowed = f"allowed {', '.join(known)}" if known else "it has none"
                near = did_you_mean(preset, known)
                raise ValueError(f"space {name} has no such preset; got {preset!r}; {allowed}{near}")
        return preset


def _named(name: str) -> dict[str, str]:
    """Return the keys that a name alone stands for."""
    return {"name": name}


SpaceSection = Annotated[SpaceConfig, ReadAnew(), OrName(_named, "NAME of a space")]
"""What recipes hold: a section, or the name of a space alone."""


def make_space(config: SpaceConfig, model: ModelConfig | None = None, key: str = "search.space") -> Space:
    """Return the space of a recipe; one of versions of a given model is of the recipe's unless its options name one.

    Raises InputError, naming the recipe's `key`, for options that the space refuses.
    """
    options: dict[str, Any] = dict(config.options)
    if model is not None and "model" in space_class(config.name).Config.model_fields:
        options.setdefault("model", model.model_dump())
    with blamed_on(key):
        if config.preset is not None:
            return open_preset(config.name, config.preset, options)[0]
        return create(config.name, options)


def fitted(space: Space, data: DataConfig | None, task: TaskConfig, seed: int) -> Data | None:
    """Open the recipe's data at the size of `space`, and let the space build for them; None where there are none.

    Where the task leaves the width of the head to the model, it is the space's own.

    Raises:
        InputError: networks of the space give something else than the task learns from.
    """
    own = space.default_task
    found = None if data is None else opened(data, task, image_size=own.img_size, seed=seed)
    bound = task.bind(own.num_outputs, own.input_size) if found is None else found.task
    if not bound.num_outputs:
        bound = replace(bound, num_outputs=own.num_outputs)
        found = None if found is None else replace(found, task=bound)
    space.default_task = bound
    _try_build(space, seed)
    if found is not None and found.train is not None and type(task) is not type(DEFAULT) and space.name != "table":
        _try_out(space, found.train, bound, seed)
    return found


def _try_build(space: Space, seed: int) -> None:
    """Raise InputError where a third party's space builds no networks, others each time, or of another cost.

    Two architectures are built, before anything is trained; `compress.testing.spaces` tries out much more.
    """
    if is_ours(space):
        return  # and NNI's
    generator = random.Random(seed)
    for arch in [space.sample(generator) for _ in range(2)]:
        which = f"search.space: {space.name} builds of {shorten(str(dict(arch)), 200, placeholder=' ...')}"
        side = space.input_size(arch, space.default_task.img_size)
        task = space.default_task.resized((space.default_task.in_chans, side, side))
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                built = [space.build(arch).eval() for _ in range(3)]
                found, width = {"params": count_params(built[0])[0]}, None
                if task.gives_tensor:
                    inputs = task.arguments(torch.zeros(1, *task.input_size))
                    found["macs"], width = count_macs(built[0], inputs), task.config.outputs_of(call(built[0], inputs))
        except InputError:
            raise
        except Exception as error:  # whatever a third party's code raises
            raise InputError(f"{which} no network that works: {in_one_line(error)}") from error
        shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in built]
        if shapes.count(shapes[0]) < len(shapes):
            raise InputError(f"{which} another network each time; the choices alone have to tell which it is")
        told = {name: value for name, value in space.cost(arch).items() if name in found}
        if told != found:
            raise InputError(f"{which} a network of {found}; by its _layers it would be {told}")
        if width is None and task.gives_tensor and task.has_loss:
            raise InputError(f"{which} a network that does not give {task.form}")
        if width and task.num_outputs and width != task.num_outputs:
            raise InputError(f"{which} a network with {width} outputs; wanted {task.num_outputs} {task.counted}")


def _try_out(space: Space, train: Loader, task: Task, seed: int) -> None:
    """Raise InputError where the outputs of a network of the space are not those of the task, or not like its targets.

    Most spaces are of networks with one row of numbers for each image, as classifiers have it.
    """
    if not task.has_loss:
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = space.build(space.sample(random.Random(seed)))
        batch = task.mixed(next(iter(train.epoch(0))).part(0, 2))
        try:
            with task.losing(model), torch.no_grad(), enough_values():
                task.loss(task.forward(model, batch), batch, model)
        except InputError as error:
            raise InputError(
                f"task: networks of the space {space.name} are not for task {task.name}: {error}"
            ) from error


@contextmanager
def blamed_on(key: str) -> Iterator[None]:
    """Put the recipe's key before every problem that does not begin with its section."""
    section = key.partition(".")[0]
    try:
        yield
    except InputError as error:
        given = (p if p.startswith(f"{section}.") else f"{key}: {p}" for p in error.problems)
        raise InputError(*given) from error
