"""Modules that only hold another one: torch.compile, data parallelism, weight averaging."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from compress.core.errors import InputError

_INSIDE: dict[type[nn.Module], str] = {
    OptimizedModule: "_orig_mod",
    nn.DataParallel: "module",
    DistributedDataParallel: "module",
    AveragedModel: "module",
}
QUANTIZED = ("quantized", "qat")
"""Parts of the names of torch's modules of layers that compute, or learn to compute, with integers."""


def unwrapped(given: Any) -> nn.Module:
    """Return the module that a compiled, data-parallel or averaged one holds; any other as it is.

    Raises InputError for what is no module, for TorchScript, whose code is compiled for the widths that it was made
    with, and for layers that torch has quantized, whose weights are packed integers.
    """
    if not isinstance(given, nn.Module):
        made = isinstance(given, type) and issubclass(given, nn.Module)
        got = f"the class {given.__name__}" if made else f"a {type(given).__name__}"
        raise InputError(f"model: got {got}; allowed an nn.Module" + (f", such as {given.__name__}()" if made else ""))
    model: nn.Module = given
    while (inside := _inside(model)) is not None:
        model = inside
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"layer {name!r} of the model" if name else "the model"
            raise InputError(f"{where} is TorchScript, whose code cannot be narrowed; give the Python module itself")
        kind = type(module)
        if any(part in kind.__module__.split(".") for part in QUANTIZED) and "FloatFunctional" not in kind.__name__:
            where = f"layer {name!r} of the model" if name else "the model"
            raise InputError(
                f"{where} ({kind.__name__}) is quantized by torch, which is neither trained nor narrowed; give the "
                "model of floats, and integers by the section quantize"
            )
    return model


def unwrap_all(model: nn.Module) -> nn.Module:
    """Return `unwrapped(model)` with every module inside it unwrapped in place, and what was compiled in place plain.

    Raises InputError as `unwrapped` does.
    """
    model = unwrapped(model)
    for module in model.modules():
        module._compiled_call_impl = None
        for name, child in module.named_children():
            module._modules[name] = unwrapped(child)
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    found = next((getattr(model, name) for kind, name in _INSIDE.items() if isinstance(model, kind)), None)
    return found if isinstance(found, nn.Module) else None
