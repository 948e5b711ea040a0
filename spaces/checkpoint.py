"""Weights of a checkpoint in a model: matched by name, checked, loaded with a report of what fitted."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.core.tensors import restore
from spaces.checkpoint_file import read_checkpoint, some

_STATISTICS = ("running_mean", "running_var")
_HALF = 0.5
_DEPTH = 3  # wrappers around a model that its names are searched below


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint; `taken` says which of several state dicts and which part of it."""

    source: str
    matched: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    taken: str = ""

    @property
    def clean(self) -> bool:
        """Whether every tensor of the model is the file's, and every one of the file is in the model."""
        return not (self.missing or self.unexpected or self.reshaped or self.replaced)

    def summary(self) -> str:
        """Return the report as one line."""
        parts = [f"{self.source}: {self.matched} tensors loaded" + (f" from {self.taken}" if self.taken else "")]
        for label, names in (
            ("classifier replaced (left at its initial values)", self.replaced),
            ("resized to the model", self.reshaped),
            ("missing in the file (left at their initial values)", self.missing),
            ("unexpected in the file (ignored)", self.unexpected),
        ):
            if names:
                parts.append(f"{label}: {some(names)}")
        return "; ".join(parts)


def first_infinite(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> str | None:
    """Return the first tensor of `state` (by default the model's own) that is a weight and holds NaN or infinity.

    Weights are the parameters that are trained and the running statistics. Other buffers and frozen parameters are
    constants, which may well be infinite: attention masks are.
    """
    state = model.state_dict() if state is None else state
    weights = {name for name, each in model.named_parameters(remove_duplicate=False) if each.requires_grad}
    weights |= {name for name, _ in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS}
    names = [name for name in model.state_dict() if name in weights and name in state]
    flags = [torch.isfinite(state[name]).all() for name in names]
    if not flags:
        return None
    found = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()  # one wait for the device
    return next((name for name, finite in zip(names, found, strict=True) if not finite), None)


def refuse_infinite(model: nn.Module, state: Mapping[str, Tensor], source: str, key: str) -> None:
    """Raise InputError, naming the recipe's `key` and the tensor, when a weight of `model` in `state` is not finite."""
    name = first_infinite(model, state)
    if name is not None:
        raise InputError(f"{key}: {source!r} is not finite: the tensor {name!r} holds NaN or infinity")


def load_checkpoint(model: nn.Module, path: str | Path, key: str = "model.checkpoint") -> LoadReport:
    """Load a checkpoint file into `model` in place; see `read_checkpoint` and `load_weights` for what is refused."""
    state, taken = read_checkpoint(Path(path).expanduser(), key)
    return load_weights(model, state, str(path), key, taken)


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, key: str = "model.checkpoint", taken: str = ""
) -> LoadReport:
    """Load `state` into `model` in place and report what fitted.

    Where the model is a part of what was saved (`model.`, `net.`, `backbone.`), the part that fits best is taken.
    Names of other publishers are translated by the `checkpoint_filter_fn` of the model's own file (timm's custom).
    A classifier of another number of classes keeps its initial values and is named. Raises InputError, naming the
    recipe's `key`, when any other tensor has another shape or when less than half of the model's values are found.
    """
    wanted = model.state_dict()
    given = dict(state)
    changed: list[str] = []
    if not _fits(wanted, given):
        prefix, *others = _best_prefixes(wanted, given)
        given = _below(given, prefix)
        part = f"the part {prefix.removesuffix('.')!r}" if prefix else ""
        beside = f" (beside {', '.join(repr(other.removesuffix('.')) for other in others)})" if part and others else ""
        taken = ", ".join(filter(None, (taken, part + beside)))
        translated = _translate(model, given)
        changed = [n for n in translated if n in given and translated[n].shape != given[n].shape]
        given = translated
        _share(wanted, given)
    wrong = [name for name, value in given.items() if name in wanted and value.shape != wanted[name].shape]
    replaced = [name for name in wrong if name.rpartition(".")[0] in classifier_names(model)]
    _refuse_shapes(wanted, given, [name for name in wrong if name not in replaced], source, key)
    usable = {name: value for name, value in given.items() if name in wanted and name not in replaced}
    _refuse_strangers(model, usable, set(replaced), source, key, list(state))
    _refuse_other_kinds(model, usable, source, key)
    refuse_infinite(model, usable, source, key)
    restore(model, usable, strict=False)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    return LoadReport(
        source=source,
        matched=len(usable),
        missing=[name for name in wanted if name not in given and name not in counters],
        unexpected=[name for name in given if name not in wanted],
        reshaped=[name for name in changed if name in usable],
        replaced=replaced,
        taken=taken,
    )


def _fits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    return wanted.keys() == given.keys() and all(given[name].shape == value.shape for name, value in wanted.items())


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _best_prefixes(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return the prefix below which `given` has most of the names and shapes of `wanted`, then others with as many.

    Averaged weights come before others, then shorter prefixes before longer ones, then the file's order counts.
    """
    names = [name.split(".") for name in given]
    prefixes = ["", *(".".join(parts[:n]) + "." for parts in names for n in range(1, min(_DEPTH + 1, len(parts))))]

    def shaped(prefix: str) -> int:
        known = [name for name in wanted if prefix + name in given]
        return sum(given[prefix + name].shape == wanted[name].shape for name in known)

    counts = {prefix: shaped(prefix) for prefix in dict.fromkeys(prefixes)}
    most = max(counts.values())
    if most < _HALF * len(wanted):
        return [_common_prefix(names)]
    best = [prefix for prefix, count in counts.items() if count == most]
    return sorted(best, key=lambda prefix: ("ema" not in prefix.lower(), len(prefix)))


def _common_prefix(names: Iterable[list[str]]) -> str:
    """Return the one first part of all names, if it is a wrapper's: the names below may be another publisher's."""
    first = {parts[0] for parts in names}
    return next((f"{name}." for name in ("model", "net", "backbone", "module") if first == {name}), "")


def _share(wanted: Mapping[str, Tensor], given: dict[str, Tensor]) -> None:
    """Enter into `given` the other names of tied tensors: files hold shared memory once."""
    aliases: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, value in wanted.items():
        if value.numel():
            aliases.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    for names in aliases.values():
        there = next((name for name in names if name in given), None)
        if there is not None:
            given |= {name: given[there] for name in names if name not in given}


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
        raise InputError(f"{key}: {source!r} does not fit the model: {some(shown, 3)}")


def _refuse_other_kinds(model: nn.Module, usable: Mapping[str, Tensor], source: str, key: str) -> None:
    """Raise InputError where weights are whole numbers (of a quantised model) or complex, and the model's are not."""
    wrong = [
        f"{name} is {str(usable[name].dtype).removeprefix('torch.')}"
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and name in usable and not usable[name].is_floating_point()
    ]
    if wrong:
        raise InputError(f"{key}: {source!r} holds other numbers than the floats that weights are: {some(wrong, 3)}")


def _refuse_strangers(
    model: nn.Module, usable: Mapping[str, Tensor], replaced: set[str], source: str, key: str, keys: list[str]
) -> None:
    sizes = {name: p.numel() for name, p in model.named_parameters() if name not in replaced}
    found = sum(size for name, size in sizes.items() if name in usable)
    if sizes and found < _HALF * sum(sizes.values()):
        missing = [name for name in sizes if name not in usable]
        raise InputError(
            f"{key}: {source!r} is of another model: it holds {found:,} of the model's {sum(sizes.values()):,} "
            f"values; missing {some(missing, 3)}; the file's keys are {some(keys, 3)}"
        )
