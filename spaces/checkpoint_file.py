"""Checkpoint files: read without running code, and the state dict found inside, whatever training script wrote it."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
# Averaged weights first: they are what a training script that keeps both evaluates.
_WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "shadow", "shadow_params",
    "model_state_dict", "state_dict", "model_state", "model", "net", "network", "params", "weights", "module",
)  # fmt: skip
# steps that torch.compile, FSDP, activation checkpointing and Fabric put into the names, wherever they were applied
_STEPS = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.)+")
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})(\.\w+)")
_INDEX = ".index.json"
# Values that training scripts leave beside the weights; rebuilding them runs no code of the file's.
_scalar = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_checkpoint(path: str | Path, key: str = "model.checkpoint") -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a .safetensors file, or from a torch file without unpickling objects.

    The index of a file in parts (`model.safetensors.index.json`, as Hugging Face writes them) stands for all of them.
    Unwraps `state_dict`, `model`, EMA and similar keys, and strips prefixes of DataParallel, FSDP and torch.compile.
    Returns the tensors by name, and which of several state dicts was taken (`ema (beside model)`), else "".
    Raises InputError, naming the recipe's `key`, for a file that is absent, damaged or not only tensors.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder; name a file in it" if file.is_dir() else "there is no such file"
        raise InputError(f"{key}: {str(path)!r}: {what}")
    if file.name.endswith(_INDEX):
        return _read_parts(file, key), ""
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{key}: {str(path)!r} has the suffix {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if (part := _SHARD.fullmatch(file.name)) and int(part[2]) > 1:
        whole = f"{part[1]}{part[3]}{_INDEX}"
        raise InputError(f"{key}: {str(path)!r} is one of {int(part[2])} parts; name their index, such as {whole}")
    content = read_safetensors(file, key) if file.suffix.lower() == ".safetensors" else _read_torch(file, key)
    state, taken = _unwrap(content)
    if not state:
        found = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            found = f"the keys {some([str(name) for name in content])}" if content else "nothing"
        raise InputError(f"{key}: {str(path)!r} holds no tensors by name; found {found}")
    return state, taken


def read_safetensors(file: Path, key: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file; raises InputError, naming `key`, when it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_text(file, key)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{key}: {str(file)!r} is not a complete safetensors file ({error})") from error


def _read_parts(index: Path, key: str) -> dict[str, Tensor]:
    """Read all parts of a checkpoint by its index."""
    try:
        parts = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = [index.with_name(str(name)) for name in dict.fromkeys(parts.values())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: {str(index)!r} is no index of a checkpoint in parts: weight_map is missing"
        ) from error
    state: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file() or file.suffix not in SUFFIXES:
            raise InputError(f"{key}: {str(index)!r} names the part {file.name!r}; there is no such file beside it")
        state |= _unwrap(read_safetensors(file, key) if file.suffix == ".safetensors" else _read_torch(file, key))[0]
    if absent := [name for name in parts if name not in state]:
        raise InputError(f"{key}: the parts of {str(index)!r} lack {some(absent)}")
    return state


def some(names: list[str], limit: int = 5) -> str:
    """Return the first of `names` and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _refuse_text(file: Path, key: str) -> None:
    """Raise InputError for what often lies where weights should: a pointer of a large-file store, or a web page."""
    try:
        with file.open("rb") as opened:
            start = opened.read(200).lstrip()
    except OSError as error:
        raise InputError(f"{key}: {str(file)!r} cannot be read: {error.strerror or error}") from error
    if start.startswith(b"version https://git-lfs") or b"/annex/objects/" in start:
        how = "git lfs pull" if start.startswith(b"version") else "git annex get"
        raise InputError(
            f"{key}: {str(file)!r} is a pointer to a file in a large-file store, not the weights; fetch them ({how})"
        )
    if start[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{key}: {str(file)!r} is a web page, not the weights; download the file itself")


def _read_torch(file: Path, key: str) -> Any:
    _refuse_text(file, key)
    safe = "only tensors are read, so save its state_dict() as .safetensors"
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # about pickle protocols, which the user cannot act on
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f" ({named.group(1)})" if named else ""
            if named and named.group(1).startswith("ultralytics"):
                raise InputError(f"{key}: {_of_ultralytics(file)}") from error
            raise InputError(f"{key}: {str(file)!r} is a pickle that holds code or objects{what}; {safe}") from error
        raise InputError(f"{key}: {str(file)!r} is not a torch checkpoint; {safe}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        if "TorchScript" in str(error):
            raise InputError(f"{key}: {str(file)!r} is a TorchScript archive, which holds code; {safe}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{key}: {str(file)!r} is not a complete torch checkpoint ({reason})") from error


def _of_ultralytics(file: Path) -> str:
    """Return, as a sentence, how the weights come out of a checkpoint of Ultralytics."""
    convert = (
        "from ultralytics import YOLO; from safetensors.torch import save_file; "
        f"save_file(YOLO({file.name!r}).model.float().state_dict(), {file.stem + '.safetensors'!r})"
    )
    return (
        f"{str(file)!r} is a checkpoint of Ultralytics, a pickle of whole objects, and stays closed; where ultralytics "
        f'is installed and the file is trusted, write its weights by python -c "{convert}", and load them into the '
        "network by model: {source: python, name: package.module:callable, checkpoint: ...}"
    )


def _plain(tensor: Tensor) -> Tensor:
    """Return the numbers of a sparse or quantized tensor, or one of eight-bit floats, in a form that can be computed.

    Without them a tensor is not known to be finite, and does not fit into a layer.
    """
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _unwrap(content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the named tensors inside a checkpoint, and which of several were taken."""
    taken = ""
    while isinstance(content, Mapping):
        inside = [name for name, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)]
        known = [name for name in _WRAPPERS if name in inside]
        flat = any(isinstance(value, Tensor) and value.ndim for value in content.values())
        if not known and (flat or len(inside) != 1):
            break
        name = (known or inside)[0]
        others = [other for other in inside if other != name and (other in known or _alike(content, name, other))]
        taken = f"{name} (beside {', '.join(others)})" if others else taken
        content = content[name]
    if not isinstance(content, Mapping):
        return {}, ""
    state = {_STEPS.sub(r"\1", str(name)): _plain(each) for name, each in content.items() if isinstance(each, Tensor)}
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state, taken


def _alike(content: Mapping[Any, Any], name: str, other: str) -> bool:
    """Return whether two mappings have the same keys: two state dicts of one network."""
    return bool(content[name].keys() == content[other].keys())


def _holds_tensors(value: Mapping[Any, Any]) -> bool:
    """Return whether there are tensors by name in `value` or in a mapping inside; an optimiser's are by number."""
    return any(
        isinstance(name, str) and (isinstance(item, Tensor) or (isinstance(item, Mapping) and _holds_tensors(item)))
        for name, item in value.items()
    )
