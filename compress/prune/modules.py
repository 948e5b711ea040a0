"""Which weights compete with each other, and which are left whole.

Module rules for any vision model, read from the kinds and names of its layers (DIMAP, appendix B, gives them
for Swin; the others are ours):

| module | members |
| --- | --- |
| QKV-M | what makes queries, keys and values in an attention layer, spatial reductions included |
| PRJ-M | the output projection of an attention layer |
| MLP-M | the layers of a block's MLP |
| TOK-M | the token-mixing layers of an MLP mixer |
| a stage's name | every other linear layer and convolution, pooled per stage (all of a CNN) |

Left whole, because they hold few weights and each matters much: the stem or patch embedding, the classifier,
depthwise convolutions, position tables and what computes them, and in transformers the merging between stages;
and everything that is neither a linear layer nor a convolution, biases and norms above all.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.core.errors import InputError, did_you_mean

QKV, PROJECTION, MLP, TOKENS = "QKV-M", "PRJ-M", "MLP-M", "TOK-M"

_STEM = re.compile(r"stem|patch_embed|pixel_embed")
_POSITION = re.compile(r"(.*_)?pos(_|$|ition)|cpb|meta_mlp|c[pr]pe")
_MERGING = re.compile(r".*downsampl|.*merging|pool$|reduction$", re.IGNORECASE)
_ATTENTION = re.compile(r".*(att|XCA|GPSA|MHSA)", re.IGNORECASE)
_INPUT = re.compile(r"(w|to_)?(qkv|qk|kv|q|k|v)(_?proj.*)?$|in_proj|query|key|value|sr$")
_OUTPUT = re.compile(r"(o_|out_)?proj$|proj_out$|to_out$|wo$|out$|projection$|merge$")
_MLP = re.compile(r"mlp|ffn|feed_?forward", re.IGNORECASE)
_MLP_CLASS = re.compile(r".*(mlp|ffn|feed_?forward)", re.IGNORECASE)
_TOKENS = re.compile(r".*_tokens?$")
_HEAD = re.compile(r"(aux_)?heads?(_dist)?$|pre_logits$|classifier$")


@dataclass(frozen=True)
class Skipped:
    """A parameter that is left whole, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Weight:
    """A weight that takes part, with the module and the stage it belongs to."""

    name: str
    module: str
    stage: str


@dataclass(frozen=True)
class Assignment:
    """Every parameter of a model: those that take part, in the model's order, and those left whole."""

    weights: tuple[Weight, ...]
    skipped: tuple[Skipped, ...]


def assign_modules(
    model: nn.Module,
    modules: Mapping[str, Sequence[str]] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Assignment:
    """Give every weight of `model` a module, or a reason to be left whole.

    Args:
        model: any torch module; only names, kinds and shapes are read.
        modules: module name -> glob patterns over weight (or layer) names; replaces the rules above.
        include: if given, only weights matching one of these globs take part.
        exclude: weights matching one of these globs are left whole.

    Raises:
        InputError: a glob matches no parameter, or one weight is claimed by two modules.
    """
    reader = _Reader(model)
    _check_globs(reader.names, {"include": include, "exclude": exclude, **_rule_keys(modules)})
    weights: list[Weight] = []
    skipped: list[Skipped] = []
    for name in reader.names:
        reason = reader.unfit(name)
        module = None
        if reason is None and modules is None:
            reason, module = reader.rule(name)
        elif reason is None and modules is not None:
            module = _claimed(name, modules)
            reason = None if module else "not named in modules"
        if reason is None and include and not _matches(name, include):
            reason = "not in include"
        if reason is None and _matches(name, exclude):
            reason = "excluded"
        if reason is None and module is not None:
            weights.append(Weight(name, module, reader.stage(name)))
        else:
            skipped.append(Skipped(name, reason or "not named in modules"))
    return Assignment(tuple(weights), tuple(skipped))


class _Reader:
    """Reads the part that a parameter plays from its name, its layer and the layers around it."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.names = list(self.parameters)
        self.layers = dict(model.named_modules())
        self.first, self.last = self._ends(model)
        self.attention = _attention_layers(self.layers)
        roles = {name: self._block_role(name) for name in self.names if self.unfit(name) is None}
        self.roles = {name: role for name, role in roles.items() if role}
        self.is_transformer = bool(self.roles)

    def unfit(self, name: str) -> str | None:
        """Return why a parameter can never be masked, or None for a weight of a linear layer or convolution."""
        layer = self.layers[_layer_of(name)]
        if not isinstance(layer, nn.Linear | _ConvNd | nn.MultiheadAttention):
            return f"parameter of {type(layer).__name__}"
        if self.parameters[name].ndim < 2 or not name.endswith("weight"):
            return "bias"
        return None

    def rule(self, name: str) -> tuple[str | None, str | None]:
        """Return (reason to leave it whole, None) or (None, module) for a weight."""
        path = _path(name)
        layer = self.layers[_layer_of(name)]
        if _layer_of(name) in self.last:
            return "classifier", None
        if _layer_of(name) in self.first or (_any(path, _STEM) and "backbone" not in path):
            return "stem or patch embedding", None
        if _any(path, _POSITION):
            return "position encoding", None
        if isinstance(layer, _ConvNd) and layer.groups > 1 and layer.groups == layer.in_channels:
            return "depthwise convolution", None
        if name in self.roles:
            return None, self.roles[name]
        if self._attention_around(name):
            return "neither input nor output of its attention", None
        if self.is_transformer and self._is_merging(name):
            return "merging between stages", None
        return None, self.stage(name)

    def stage(self, name: str) -> str:
        """Return the outermost numbered container around a weight: `layers.0`, `blocks.3`, `layer1`, `Mixed_5b`.

        In a flat list of layers (VGG), stages end at pooling layers and are called `features/0`, `features/1`, ...
        """
        parts = _layer_of(name).split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            if any(letter.isdigit() for letter in part):
                return ".".join(parts[:depth])
        container = self.layers[".".join(parts[:-1])]
        pools = [key for key, child in container.named_children() if "Pool" in type(child).__name__]
        if not pools or not parts[-1].isdigit():
            return parts[0]
        return f"{'.'.join(parts[:-1])}/{sum(int(key) < int(parts[-1]) for key in pools if key.isdigit())}"

    def _ends(self, model: nn.Module) -> tuple[set[str], set[str]]:
        """Return the layers that read the image and those that give the outputs: from timm's config, else by place."""
        config = getattr(model, "pretrained_cfg", None) or {}
        fit = [_layer_of(name) for name in self.names if self.unfit(name) is None]
        first, last = _as_set(config.get("first_conv")), _as_set(config.get("classifier"))
        if not first:
            convs = (key for key in fit if isinstance(self.layers[key], _ConvNd))
            first = {key for key in convs if int(getattr(self.layers[key], "in_channels", 0)) <= 4}
        if not last and fit and (isinstance(self.layers[fit[-1]], nn.Linear) or _HEAD.match(fit[-1].split(".")[0])):
            last = {fit[-1]}
        return first, last

    def _block_role(self, name: str) -> str | None:
        """Return the module of a weight inside an attention layer or an MLP, else None."""
        path = _path(name)
        if _HEAD.match(path[0]) or _any(path, _POSITION):
            return None
        if self._is_mlp(name):
            return TOKENS if _any(path, _TOKENS) else MLP
        attention = self._attention_around(name)
        if attention is None:
            return None
        told = (part for part in path[attention:] if _INPUT.match(part) or _OUTPUT.match(part))
        part = next(told, None)
        return None if part is None else QKV if _INPUT.match(part) else PROJECTION

    def _attention_around(self, name: str) -> int | None:
        """Return how deep the attention layer around a weight lies, or None."""
        parts = _layer_of(name).split(".")
        return next((deep for deep in range(len(parts), 0, -1) if ".".join(parts[:deep]) in self.attention), None)

    def _is_mlp(self, name: str) -> bool:
        path = _path(name)
        owner = self.layers[_layer_of(_layer_of(name))]
        if isinstance(owner, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            return isinstance(self.layers[_layer_of(name)], nn.Linear)
        named = _any(path, _MLP) or path[-1] == "linear_tokens"
        return named or bool(_MLP_CLASS.match(type(owner).__name__))

    def _is_merging(self, name: str) -> bool:
        parts = _layer_of(name).split(".")
        around = [type(self.layers[".".join(parts[:depth])]).__name__ for depth in range(1, len(parts))]
        return _any(parts, _MERGING) or any(re.match(r".*(Downsampl|Merging|Pool)", kind) for kind in around)


def _attention_layers(layers: Mapping[str, nn.Module]) -> set[str]:
    """Return the innermost layers that are called attention and make queries; blocks around them are none."""
    named = [key for key, layer in layers.items() if _ATTENTION.match(type(layer).__name__) and _has_queries(layer)]
    return {key for key in named if not any(other.startswith(f"{key}.") for other in named)}


def _has_queries(layer: nn.Module) -> bool:
    return any(_INPUT.match(part) for name, _ in layer.named_parameters() for part in name.split("."))


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _path(name: str) -> list[str]:
    """Return the parts of a weight's name; the last is dropped where it is only `weight`."""
    return name.removesuffix(".weight").split(".")


def _any(path: Iterable[str], pattern: re.Pattern[str]) -> bool:
    return any(pattern.match(part) for part in path)


def _as_set(names: str | Sequence[str] | None) -> set[str]:
    return {names} if isinstance(names, str) else set(names or ())


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(_layer_of(name), glob) for glob in globs)


def _rule_keys(modules: Mapping[str, Sequence[str]] | None) -> dict[str, Sequence[str]]:
    return {f"modules.{module}": globs for module, globs in (modules or {}).items()}


def _claimed(name: str, modules: Mapping[str, Sequence[str]]) -> str | None:
    """Return the module whose globs name a weight."""
    claims = [module for module, globs in modules.items() if _matches(name, globs)]
    if len(claims) > 1:
        raise InputError(f"prune.modules: weight {name!r} is claimed by {' and '.join(map(repr, claims))}")
    return claims[0] if claims else None


def _check_globs(names: Sequence[str], globs: Mapping[str, Sequence[str]]) -> None:
    """Refuse globs that match no parameter, all of them at once."""
    problems = [
        f"prune.{key}: {glob!r} matches no weight{_near(glob, names)}"
        for key, patterns in globs.items()
        for glob in patterns
        if not any(_matches(name, [glob]) for name in names)
    ]
    if problems:
        raise InputError(*problems)


def _near(glob: str, names: Sequence[str]) -> str:
    """Return the nearest name to a glob, or some names to start from."""
    layers = dict.fromkeys(_layer_of(name) for name in names)
    parts = dict.fromkeys(part for layer in layers for part in layer.split(".") if not part.isdigit())
    bare = glob.strip("*.")
    hint = did_you_mean(bare, layers) or did_you_mean(bare.split(".")[-1], parts)
    return hint or f"; weights are called {', '.join(repr(name) for name in names[:3])}, ..."
