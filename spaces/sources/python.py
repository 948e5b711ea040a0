"""Modules of the user's, by the name of what builds them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from compress.core.errors import InputError, did_you_mean, is_out_of_memory, reason_of
from compress.core.wrappers import unwrap_all
from evaluators.tasks import Task
from spaces.shapes import as_argument, sides_of, wished
from spaces.sources.construct import merged, parameters, refused, resolved
from spaces.user_code import import_module, is_there
from spaces.zoo import BuiltModel, ModelConfig, Source, sources


@sources.register("python")
class PythonSource(Source):
    """What a callable `package.module:callable` returns; the working directory is searched too."""

    images = False
    own_code = True

    def problems(self, config: ModelConfig) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the form of the name, or that there is no such module; none is run."""
        module, attribute = _parts(config.name)
        if not (module and attribute):
            hint = f"; did you mean '{':'.join(module.rsplit('.', 1))}'?" if "." in module and not attribute else ""
            yield "name", f"got {config.name!r}; a python model is written package.module:callable{hint}"
        elif not all(map(str.isidentifier, module.split("."))):
            yield (
                "name",
                f"got {config.name!r}; a file is named from the working directory, such as nets/my_net.py:MyNet",
            )
        elif not is_there(module):
            near = did_you_mean(module, [file.stem for file in Path.cwd().glob("*.py")])
            yield "name", f"there is no module {module!r}, neither installed nor in the working directory{near}"

    def build(self, config: ModelConfig, task: Task) -> BuiltModel:
        """Call it with the kwargs, and with `num_classes`, `in_chans`, `img_size` or `image_size` if it takes them."""
        factory = _import(config.name)
        kwargs = dict(config.kwargs)
        sides = sides_of(task)
        sizes = dict.fromkeys(("img_size", "image_size"), as_argument(sides))
        wishes = {"num_classes": wished(task.num_outputs), "in_chans": wished(task.in_chans), **sizes}
        for name, value in wishes.items():
            if name in parameters(factory):
                kwargs = merged(config, kwargs, **{name: value})
        with refused(config, kwargs):
            module = factory(**kwargs)
        if not isinstance(module, nn.Module):
            raise InputError(
                f"model.name: {config.name!r} returned {type(module).__name__}; a torch.nn.Module is needed"
            )
        try:
            module = unwrap_all(module)
        except InputError as error:
            raise InputError(f"model.name: {config.name!r}: {error}") from error
        shape = (task.in_chans or 3, *((224, 224) if sides is None else sides))
        cfg = {"input_size": shape, "fixed_input_size": config.input_size is not None or config.inputs is not None}
        sized = config if config.inputs is not None else config.model_copy(update={"input_size": shape})
        return resolved(sized, kwargs, module, task.config.of_model(None, shape), None, cfg)


def _parts(name: str) -> tuple[str, str]:
    """Return module and attribute of `package.module:callable`; a file may be named: `package/module.py:...`."""
    module, _, attribute = name.partition(":")
    if module.endswith(".py") and not module.startswith("/"):
        module = PurePath(module.replace("\\", "/")).with_suffix("").as_posix().replace("/", ".")
    return module.strip(), attribute.strip()


def _import(name: str) -> Callable[..., Any]:
    """Return the callable `package.module:callable`; the working directory is searched too."""
    module_name, attribute = _parts(name)
    try:
        found: Any = import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's file, which may raise anything
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise InputError(f"model.name: cannot import {module_name!r}: {reason}") from error
    try:
        found = functools.reduce(getattr, attribute.split("."), found)
    except AttributeError as error:
        hint = did_you_mean(attribute, dir(found))
        raise InputError(f"model.name: {module_name!r} has no {attribute!r}{hint}") from error
    if isinstance(found, nn.Module):
        raise InputError(f"model.name: {name!r} is a model already; name its class, or a function that returns it")
    if not callable(found):
        raise InputError(f"model.name: {name!r} is of type {type(found).__name__}; a callable is needed")
    return found  # type: ignore[no-any-return]
