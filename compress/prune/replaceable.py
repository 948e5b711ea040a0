"""Which linear layers and convolutions of a model can be replaced by others, and what each costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.core.errors import CompressError, InputError, did_you_mean, in_one_line, is_out_of_memory
from compress.core.globs import named as is_named
from compress.core.modes import evaluating
from compress.core.tensors import Inputs, call, flat
from compress.graph.graph import Skip
from compress.transforms import Transform
from compress.transforms.layers import PLAIN, Plain

SAME = 1e-3
"""How far, relatively, the outputs of the new layers may be off those of ordinary ones with the same weights."""


@dataclass(frozen=True)
class Layer:
    """A layer that can be replaced, and at how many places of one sample its weight is used."""

    name: str
    layer: Plain
    places: int

    @property
    def params(self) -> int:
        """How many weights it has; its MACs are `places` times as many."""
        return self.layer.weight.numel()


def replaceable(
    model: nn.Module,
    example_inputs: Inputs,
    unfit: Callable[[Plain], str | None],
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[list[Layer], list[Skip]]:
    """Return the layers that can be replaced, in the model's order, and the others with the reason.

    Args:
        model: it is run once on the sample `example_inputs`.
        example_inputs: one sample (1, ...).
        unfit: gives the reason why a layer cannot be replaced, None where it can.
        include: globs over layers; if there are any, only these are replaced.
        exclude: globs over layers that stay.

    Raises:
        InputError: a glob matches no layer, or there is nothing to replace.
    """
    named = {name: module for name, module in model.named_modules() if name and isinstance(module, PLAIN)}
    for key, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if not any(is_named(name, glob) for name in named):
                raise InputError(
                    f"prune.{key}: the pattern {glob!r} matches no linear layer or convolution; allowed are globs over "
                    f"their names such as {next(iter(named), '')!r}{did_you_mean(glob, named)}"
                )
    used = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    places, own = _run(model, example_inputs, named)
    found, skipped = [], []
    for name, layer in named.items():
        reason = _out_of_scope(name, include, exclude) or _unlike_others(layer, used) or unfit(layer)
        if reason is None and name in own:
            reason = f"a {type(layer).__module__}.{type(layer).__name__} computes in a way of its own"
        if reason is None and name not in places:
            reason = "it is not called: another module reads its weight, or nothing does"
        if reason is None:
            found.append(Layer(name, layer, places[name]))
        else:
            skipped.append(Skip(name, reason))
    if not found:
        raise InputError(nothing_left(skipped))
    return found, skipped


def nothing_left(skipped: Iterable[Skip]) -> str:
    """Return the sentence for a model of which nothing is replaced."""
    reasons = "; ".join(f"{skip.layer}: {skip.reason}" for skip in list(skipped)[:3])
    return f"prune: no layer is left to replace; {reasons or 'the model has no linear layer or convolution'}"


@dataclass(frozen=True)
class Replacement:
    """What stands for a layer: the weight that an ordinary one would need to compute the same, and the new values.

    `values` are by name below the layer's; a bias is kept under the name of `bias`.
    """

    layer: Layer
    weight: Tensor
    values: Mapping[str, Tensor]
    bias: str = "bias"


def replace_layers(bundle: Bundle, transform: Transform, new: Sequence[Replacement]) -> Bundle:
    """Return the bundle after `transform`, whose new parameters have the values of `new`; its model is used up.

    Raises:
        InputError: the model does not run with the new layers.
        CompressError: it gives something else than with ordinary layers of the same weights.
    """
    model, inputs = bundle.model, bundle.example_inputs(2)
    with torch.no_grad():
        for each in new:
            each.layer.layer.weight.copy_(each.weight)
        before = _outputs(model, inputs)
        model = transform.apply(model, bundle.example_inputs())
        for each in new:
            bias = each.layer.layer.bias
            values = {**each.values, **({} if bias is None else {each.bias: bias})}
            model.get_submodule(each.layer.name).load_state_dict(values)
            trained = each.layer.layer.weight.requires_grad
            model.get_submodule(each.layer.name).requires_grad_(trained)
    try:
        after = _outputs(model, inputs)
    except Exception as error:  # a module that looks into its layers may raise anything
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"prune: the model does not run with {transform.kind} layers ({in_one_line(error)}); leave layers out with "
            "prune.exclude"
        ) from error
    off = float((after - before).norm() / before.norm().clamp(min=1e-30))
    if not off <= SAME:
        raise CompressError(
            f"prune: the {transform.kind} layers give other outputs than ordinary ones with the same weights, by "
            f"{off:.1e}; please report the model"
        )
    return bundle.transformed(transform, model)


def _out_of_scope(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    if (glob := next((glob for glob in exclude if is_named(name, glob)), None)) is not None:
        return f"prune.exclude: {glob!r}"
    if include and not any(is_named(name, glob) for glob in include):
        return "not in prune.include"
    return None


def _unlike_others(layer: Plain, used: Mapping[int, int]) -> str | None:
    """Return what a layer does beside multiplying by a weight of its own, if so."""
    weight = layer._parameters.get("weight")
    if weight is None or layer._forward_pre_hooks or layer._forward_hooks:
        return "its weight is computed, or hooks are on it"
    if len(layer._parameters) > 2 or layer._buffers or layer._modules:
        return f"it has other parameters than weight and bias: a {type(layer).__name__}"
    if used[id(weight)] > 1:
        return "its weight is another layer's as well"
    return None if weight.is_floating_point() else f"its weight is of {weight.dtype}"


def _run(model: nn.Module, example_inputs: Inputs, named: Mapping[str, Plain]) -> tuple[dict[str, int], set[str]]:
    """Return by layer at how many places of the sample its weight is used, without those that are not called.

    With them, the layers of classes that are not torch's and do not compute the same, or (convolutions, whose padding
    may depend on the size) may not.
    """
    places: Counter[str] = Counter()
    own: set[str] = set()

    def watch(name: str) -> Callable[[Plain, tuple[Tensor, ...], Tensor], None]:
        def called(layer: Plain, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            places[name] += output.numel() // layer.weight.shape[0]
            same = isinstance(layer, nn.Linear) and torch.equal(output, nn.Linear.forward(layer, *inputs))
            if type(layer) not in PLAIN and not same:
                own.add(name)

        return called

    handles = [layer.register_forward_hook(watch(name)) for name, layer in named.items()]
    try:
        with evaluating(model), torch.no_grad():
            call(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return dict(places), own


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    with evaluating(model), torch.no_grad():
        return flat(call(model, inputs))
