"""Operations that treat every position by itself, copies, and tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.recording import Recording
from compress.graph.rules.rule import RULES, SPATIAL, broadcast, freeze, rule


def POINTWISE(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Element-wise operations of any arity, in place or not."""
    operands = [t.of(tensor) for tensor in [*tensors_in(args), *tensors_in(kwargs)]]
    for result in tensors_in(out):
        t.set(result, broadcast(operands, result.dim()))


# Those that torch does not tag as pointwise; from `celu_` on: those that torch 2.9 does not.
for _name in ("hardswish", "hardswish_", "mish_", "gelu_", "_prelu_kernel", "masked_fill", "masked_fill_", "threshold_",
              "rrelu_with_noise", "rrelu_with_noise_", "log_sigmoid_forward", "floor_divide", "floor_divide_", "rsub",
              "abs_", "copysign_", "eq_", "ne_", "ge_", "gt_", "le_", "lt_", "xlogy_", "heaviside_", "complex", "polar",
              "angle", "conj_physical", "_conj_physical", "celu_", "elu_", "hardsigmoid_", "hardtanh_", "ldexp",
              "ldexp_", "leaky_relu", "leaky_relu_", "selu_"):  # fmt: skip
    RULES[_name] = POINTWISE


@rule("add", "add_")
def _add(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    POINTWISE(t, args, kwargs, out)
    for added, _ in t.adds:
        added.update(id(operand) for operand in tensors_in(args))


@rule("clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "native_dropout",
      "constant", "_conj", "to", "dropout", "positive", "resolve_conj", "resolve_neg", "_neg_view", "bernoulli", "fill",
      "lift", "detach_",
      "uniform_", "normal_", "bernoulli_", "exponential_", "random_", "log_normal_")  # fmt: skip
def _same(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    for result in tensors_in(out):
        t.set(result, list(t.of(args[0])))


@rule("view_as_real", "view_as_real_copy")
def _view_as_real(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    t.set(out, [*t.of(args[0]), axes.fresh(2, "it tells real from imaginary parts")])


@rule("view_as_complex", "view_as_complex_copy")
def _view_as_complex(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    *dims, last = t.of(args[0])
    axes.freeze(last, "it tells real from imaginary parts")
    t.set(out, dims)


@rule("copy_", "copy")
def _copy(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    t.set(out, broadcast([t.of(args[0]), t.of(args[1])], out.dim()))


@rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones",
      "new_full", "new_empty", "rand_like", "randn_like")  # fmt: skip
def _uniform(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    """A tensor of one value is the same for any width; that its shape follows is left to the check of the plan."""
    t.set(out, [axes.fresh(n) for n in out.shape])


@rule("arange", "scalar_tensor", "linspace", "eye", "rand", "randn", "tensor", "empty_strided", "new_empty_strided",
      "fill_", "zero_", "randint", "randperm", "tril_indices", "triu_indices", "_local_scalar_dense",
      "equal")  # fmt: skip
def _constant(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    for result in tensors_in(out):
        if result not in t.dims:
            t.set(result, [axes.fresh(n, "it is a constant made in the forward pass") for n in result.shape])


@rule("tril", "triu", "tril_", "triu_")
def _triangle(t: Recording, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
    freeze(t.of(args[0])[-2:], SPATIAL)
    t.set(out, list(t.of(args[0])))
