"""Weights from files: read without running code, checked, and loaded with a report of what fitted."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "net", "module")
_PREFIXES = ("_orig_mod.", "module.")
_HALF = 0.5


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint."""

    source: str
    matched: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the report as one line."""
        parts = [f"{self.source}: {self.matched} tensors loaded"]
        for label, names in (
            ("classifier replaced (left at its initial values)", self.replaced),
            ("resized to the model", self.reshaped),
            ("missing in the file (left at their initial values)", self.missing),
            ("unexpected in the file (ignored)", self.unexpected),
        ):
            if names:
                parts.append(f"{label}: {_some(names)}")
        return "; ".join(parts)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_state_dict(path: str | Path, key: str = "model.checkpoint") -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a torch file without unpickling objects.

    Unwraps `state_dict`, `model` and EMA keys and strips the prefixes of DataParallel and torch.compile.
    Raises InputError, naming the recipe's `key`, for a file that is absent, damaged, not only tensors, or not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{key}: there is no file {str(path)!r}")
    if file.suffix not in SUFFIXES:
        raise InputError(f"{key}: {str(path)!r} has the suffix {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    content = read_safetensors(file, key) if file.suffix == ".safetensors" else _read_torch(file, key)
    state = _unwrap(content)
    if not state:
        raise InputError(f"{key}: {str(path)!r} holds no tensors")
    refuse_infinite(state, str(path), key)
    return state


def read_safetensors(file: Path, key: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file; raises InputError, naming `key`, when it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{key}: {str(file)!r} is not a complete safetensors file ({error})") from error


def refuse_infinite(state: Mapping[str, Tensor], source: str, key: str) -> None:
    """Raise InputError, naming the recipe's `key` and the tensor, when a value is NaN or infinite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{key}: {source!r} is not finite: the tensor {name!r} holds NaN or infinity")


def _read_torch(file: Path, key: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which the user cannot act on
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        allowed = "only tensors are read, so save its state_dict() as .safetensors"
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InputError(f"{key}: {str(file)!r} is a pickle that holds code or objects; {allowed}") from error
        raise InputError(f"{key}: {str(file)!r} is not a torch checkpoint; {allowed}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{key}: {str(file)!r} is not a complete torch checkpoint ({reason})") from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    """Return the named tensors inside a checkpoint, whatever training script wrote it."""
    while isinstance(content, Mapping):
        inner = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        return {}
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, key: str = "model.checkpoint"
) -> LoadReport:
    """Load `state` into `model` in place and report what fitted.

    Names of other publishers are translated by the `checkpoint_filter_fn` of the model's own file (timm's custom).
    A classifier of another number of classes keeps its initial values and is named. Raises InputError, naming the
    recipe's `key`, when any other tensor has another shape or when less than half of the model's values are found.
    """
    wanted = model.state_dict()
    given = dict(state)
    changed: list[str] = []
    if not _fits(wanted, given):
        translated = _translate(model, given)
        changed = [n for n in translated if n in given and translated[n].shape != given[n].shape]
        given = translated
    wrong = [name for name, value in given.items() if name in wanted and value.shape != wanted[name].shape]
    replaced = [name for name in wrong if name.rpartition(".")[0] in classifier_names(model)]
    _refuse_shapes(wanted, given, [name for name in wrong if name not in replaced], source, key)
    usable = {name: value for name, value in given.items() if name in wanted and name not in replaced}
    _refuse_strangers(model, usable, set(replaced), source, key)
    model.load_state_dict(usable, strict=False)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    return LoadReport(
        source=source,
        matched=len(usable),
        missing=[name for name in wanted if name not in given and name not in counters],
        unexpected=[name for name in given if name not in wanted],
        reshaped=[name for name in changed if name in usable],
        replaced=replaced,
    )


def _fits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    return wanted.keys() == given.keys() and all(given[name].shape == value.shape for name, value in wanted.items())


def _translate(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply the checkpoint filter of the file that defines the model, where there is one."""
    filter_fn = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if filter_fn is None:
        return state
    takes_model = "model" in inspect.signature(filter_fn).parameters
    try:
        result = filter_fn(dict(state), model) if takes_model else filter_fn(dict(state))
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, TypeError):
        return state  # not a layout that the filter knows; the shapes are judged as they are
    return {name: value for name, value in result.items() if isinstance(value, Tensor)}


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that map features to classes.

    timm's models name theirs (`pretrained_cfg["classifier"]`); otherwise it is the last linear or convolution.
    """
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return tuple(layers[-1:])


def _refuse_shapes(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], wrong: list[str], source: str, key: str
) -> None:
    if wrong:
        shown = [f"{n} is {tuple(given[n].shape)}, the model's is {tuple(wanted[n].shape)}" for n in wrong]
        raise InputError(f"{key}: {source!r} does not fit the model: {_some(shown, 3)}")


def _refuse_strangers(
    model: nn.Module, usable: Mapping[str, Tensor], replaced: set[str], source: str, key: str
) -> None:
    sizes = {name: p.numel() for name, p in model.named_parameters() if name not in replaced}
    found = sum(size for name, size in sizes.items() if name in usable)
    if sizes and found < _HALF * sum(sizes.values()):
        missing = [name for name in sizes if name not in usable]
        raise InputError(
            f"{key}: {source!r} is of another model: it holds {found:,} of the model's {sum(sizes.values()):,} "
            f"values; missing {_some(missing, 3)}"
        )
