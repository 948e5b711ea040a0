"""Follow every axis of a model through one real forward pass.

A `TorchDispatchMode` sees each elementary operation with its tensors, whatever Python the model is written in, and
tells what it does to the axes of `compress.graph.axes`. An operation that is not known freezes what it touches, so
a width is removed only where every operation that sees it is understood. Cost is one forward pass: nothing is
searched recursively, so graphs of any depth and branching (DenseNet, NASNet) take seconds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.core.environment import peak_gigabytes
from compress.core.errors import InputError, is_out_of_memory
from compress.core.modes import evaluating, training_code
from compress.core.tensors import Inputs, call, hiding, mapped, tensors_in
from compress.graph import axes
from compress.graph.caches import Filling, caches_of
from compress.graph.module_reports import AttentionScale, attribute_reads, running_modules
from compress.graph.recording import Recording
from compress.graph.rules import POINTWISE, RULES, follow_means, freeze_means
from compress.graph.siblings import join_siblings
from compress.graph.trace import Trace
from compress.graph.training import shows_nothing_new
from compress.graph.unreached import keep_what_meets
from compress.graph.watch import Caches, watched

STRICT = False
"""Whether an operation whose rule fails is an error (in tests) or an operation that is not known."""


@dataclass(frozen=True)
class Limits:
    """How much a trace may cost before the model is refused: the seconds of each of its passes, and its memory."""

    seconds: float = 120.0
    gigabytes: float = 8.0


def trace(model: nn.Module, example_inputs: Inputs, limits: Limits | None = None) -> Trace:
    """Run `model` once on `example_inputs` and return how its axes hang together.

    Where parameters are left that evaluation does not reach (auxiliary heads), or the model's own code asks whether it
    is in training, it is run once more with the code of training.

    Args:
        model: any module; it is left as it was.
        example_inputs: one tensor (N, C, H, W), or a tuple or dictionary of what the model takes.
        limits: of time and memory.

    Raises:
        InputError: the forward pass fails, makes layers, or takes longer or more memory than `limits` allow; the layer
            is named.
    """
    caches = caches_of(model, example_inputs)
    seen = _traced(model, example_inputs, limits or Limits(), caches)
    if rejoined := seen.parts.rejoined:
        seen = _traced(model, example_inputs, limits or Limits(), caches, rejoined)
    unused = seen.unused()
    joined = join_siblings(model, seen.result.tensors, unused)
    for name in unused:
        for place, dim in enumerate(seen.result.tensors[name]):
            if (name, place) not in joined:
                axes.freeze(dim, "no forward pass reached it, so whether it still fits what feeds it is not known")
    if unused:
        keep_what_meets(seen, unused, joined)
    return seen.result


def _traced(
    model: nn.Module, example_inputs: Inputs, limits: Limits, caches: Caches, rejoined: Collection[int] = ()
) -> Recording:
    """Run `model` once or twice, see `trace`; `rejoined` are operations whose parts come together again."""
    seen = Recording(model, rejoined)
    seen.result.caches = {name: dict(attributes) for name, attributes in caches.items()}
    tracer = _Tracer(seen, limits)
    try:
        _pass(model, example_inputs, tracer, evaluating)
    except InputError:
        raise
    except Exception as error:  # the forward pass is the user's code
        if is_out_of_memory(error):
            raise
        raise InputError(_cannot(seen, example_inputs, error)) from error
    if seen.training_read or any(model.get_parameter(name).numel() for name in seen.unused()):
        seen.steps, counted = seen.result.training_steps, list(seen.result.operations)
        read, tracer.started = set(seen.result.attributes_read), time.monotonic()
        try:
            _pass(model, example_inputs, tracer, training_code)
            if read == seen.result.attributes_read and shows_nothing_new(seen.result):
                seen.result.training_steps.clear()
        except InputError:
            raise
        except Exception as error:  # such as a detector, which in training asks for targets
            if is_out_of_memory(error):
                raise
            seen.result.training_steps.clear()
        seen.result.operations = counted  # MACs are those of inference
    return seen


def _pass(
    model: nn.Module,
    example_inputs: Inputs,
    tracer: _Tracer,
    mode: Callable[[nn.Module], contextlib.AbstractContextManager[None]],
) -> None:
    """Run the model once under `tracer`; what comes out of it keeps its size."""
    seen, own = tracer.recording, mapped(example_inputs, Tensor.clone)
    seen.begin(tensors_in(own))
    reads = attribute_reads(seen)
    with watched(model, seen.result.caches), reads, mode(model), running_modules(seen), AttentionScale(seen), tracer:
        filling = Filling(model)
        output = call(model, own)
        for name, attributes in filling.filled().items():
            seen.result.caches.setdefault(name, {}).update(attributes)
        made = next((name for name, _ in model.named_parameters() if name not in seen.result.tensors), None)
    if made is not None:
        raise InputError(f"model: {made!r} is of a layer that the model makes at its first call; call it once before")
    if mode is evaluating:
        _refuse_hidden(output)
    seen.parts.consume("", tensors_in(output))
    for tensor in tensors_in(output):
        for dim in seen.of(tensor):
            axes.freeze(dim, "it is an output of the model")
    freeze_means(seen, tensors_in(output))


def _refuse_hidden(output: Any) -> None:
    """Raise InputError where tensors that come out, whose sizes must stay, cannot be seen."""
    hidden = hiding(output)
    if hidden is None and any(True for _ in tensors_in(output)):
        return
    what = f"a {hidden}, whose tensors cannot be seen" if hidden else f"a {type(output).__name__} without any tensor"
    raise InputError(f"the model returns {what}; allowed: tensors, alone or in tuples, lists, dictionaries and objects")


def _cannot(seen: Recording, example_inputs: Inputs, error: Exception) -> str:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example_inputs))
    return (
        f"the model cannot be traced: layer {seen.module or '(top)'!r} fails on an input of shape {shapes}: "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    )


class _Tracer(TorchDispatchMode):
    """Applies one rule for each operation, within `limits`."""

    def __init__(self, recording: Recording, limits: Limits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = recording
        self.limits = limits
        self.started = time.monotonic()
        self.memory = peak_gigabytes()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, seen = kwargs or {}, self.recording
        out = func(*args, **kwargs)
        self._check_limits()
        seen.operation, seen.activation = func.overloadpacket.__name__, False
        seen.parts.operation += 1
        rule: Callable[..., None] | None = RULES.get(seen.operation)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = POINTWISE
        try:
            if rule is not None:
                rule(seen, args, kwargs, out)
            else:
                seen.unknown(seen.operation, args, kwargs, out)
            follow_means(seen, args, kwargs, out)
        except Exception as error:  # an input that the rule did not think of: nothing is known, and nothing narrowed
            if is_out_of_memory(error):
                raise
            if STRICT:
                raise
            seen.unknown(seen.operation, args, kwargs, out)
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        seen.parts.consume(seen.operation, operands)
        masked = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in operands)
        dynamic = seen.operation == "nms" or (
            torch.Tag.dynamic_output_shape in func.tags and (masked or not seen.operation.startswith("index"))
        )
        seen.note_step(operands, out, dynamic)
        return out

    def _check_limits(self) -> None:
        layer = self.recording.module or "(top)"
        seconds = time.monotonic() - self.started
        if seconds > self.limits.seconds:
            raise InputError(
                f"the model cannot be traced within {self.limits.seconds:g} s; it had reached layer {layer!r}; "
                "use a smaller input size or raise prune.trace_seconds"
            )
        if peak_gigabytes() - self.memory > self.limits.gigabytes:
            raise InputError(
                f"tracing the model takes more than {self.limits.gigabytes:g} GB; it had reached layer {layer!r}; "
                "use a smaller input size or raise prune.trace_gigabytes"
            )
