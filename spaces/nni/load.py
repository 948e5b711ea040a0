"""Finding a model space of NNI, and keeping NNI quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compress.core.errors import InputError, did_you_mean
from spaces.user_code import import_module


def find_model_space(path: str) -> Any:
    """Return the model space class at `package.module.Class`."""
    module_name, _, name = path.rpartition(".")
    with quiet():
        try:
            from nni.nas.nn.pytorch import ModelSpace
        except ImportError as error:
            raise InputError(f"space nni:{path} needs the extra: pip install 'compress[nni]'") from error
        try:
            module = import_module(module_name)
        except (ImportError, ValueError) as error:
            raise InputError(f"space nni:{path}: no module {module_name!r} (package.module.Class): {error}") from error
    known = [key for key, value in vars(module).items() if _is_model_space(value, ModelSpace)]
    if name not in known:
        allowed = f"allowed: {', '.join(sorted(known))}" if known else "it has none"
        raise InputError(
            f"space nni:{path}: {module_name} has no ModelSpace {name!r}; {allowed}{did_you_mean(name, known)}"
        )
    return getattr(module, name)


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Keep back NNI's warnings of newer versions of torch and what it logs below `level`."""
    logger = logging.getLogger("nni")
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)


def _is_model_space(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def tuples(value: Any) -> Any:
    """Return lists, which JSON and YAML have, as tuples, which constructors of NNI ask for."""
    return tuple(tuples(each) for each in value) if isinstance(value, list | tuple) else value
