"""Follow every axis of a model through one real forward pass.

A `TorchDispatchMode` sees each elementary operation with its tensors, whatever Python the model is written in, and
tells what it does to the axes of `compress.graph.axes`. An operation that is not known freezes what it touches, so
a width is removed only where every operation that sees it is understood. Cost is one forward pass: nothing is
searched recursively, so graphs of any depth and branching (DenseNet, NASNet) take seconds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from compress.core.environment import peak_gigabytes
from compress.core.errors import InputError, is_out_of_memory
from compress.core.modes import evaluating, training_flow
from compress.core.tensors import Inputs, mapped, tensors_in
from compress.graph import axes
from compress.graph.attention import NarrowAttention
from compress.graph.axes import Dim

Dims = list[Dim]

STRICT = False
"""Whether an operation whose rule fails is an error (in tests) or an operation that is not known."""

# Operations that only rearrange: whether a reshape is a view or a copy depends on strides, so these are no landmarks.
LAYOUT = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "view_copy", "clone", "contiguous", "detach", "alias", "expand",
    "expand_copy", "permute", "permute_copy", "transpose", "t", "squeeze", "unsqueeze", "_to_copy", "as_strided",
    "lift_fresh", "lift_fresh_copy", "reshape", "slice", "select", "split", "split_with_sizes", "unbind",
    "_local_scalar_dense", "unsafe_split", "unsafe_chunk", "chunk", "empty", "empty_like", "new_empty",
    "empty_strided", "new_empty_strided",
))  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """A matrix product or convolution: `constant` x the product of the sizes of `dims` multiply-accumulates."""

    layer: str
    constant: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Step:
    """One operation of the forward pass, in order: the dimensions of its tensors.

    `dynamic`: the shape of its result depends on values (what a mask picks, what suppression leaves).
    """

    name: str
    module: str
    inputs: tuple[tuple[Dim, ...], ...]
    outputs: tuple[tuple[Dim, ...], ...]
    dynamic: bool = False


@dataclass
class Trace:
    """What the forward passes showed: axes of all tensors with a name, costs, blocks, and attributes that were read.

    `outputs` names the parameters that act as the matrix of a product or as the kernel of a convolution, by themselves
    or after operations on parameters alone (views, gains, masks), with the dimensions that number its outputs. `counts`
    are attributes (layer, name) of torch's own layers that are the size of an axis: numbers of groups and features.
    `steps` lists the operations of the forward pass in evaluation, `training_steps` those of the pass in training
    where layers take part that evaluation leaves out (auxiliary heads).
    """

    tensors: dict[str, Dims] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    counts: dict[tuple[str, str], Dim] = field(default_factory=dict)
    residual_blocks: list[str] = field(default_factory=list)
    attributes_read: set[tuple[str, str]] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    training_steps: list[Step] = field(default_factory=list)
    unscaled_attention: set[str] = field(default_factory=set)

    def seen(self, module: str) -> list[Dim]:
        """Return the dimensions of all tensors that `module` itself handled, in order, each once."""
        steps = [step for step in (*self.steps, *self.training_steps) if step.module == module]
        return list(dict.fromkeys(dim for step in steps for dims in (*step.inputs, *step.outputs) for dim in dims))


@dataclass(frozen=True)
class Limits:
    """How much a trace may cost before the model is refused."""

    seconds: float = 120.0
    gigabytes: float = 8.0


def trace(model: nn.Module, example_inputs: Inputs, limits: Limits | None = None) -> Trace:
    """Run `model` once on `example_inputs` and return how its axes hang together.

    Where parameters are left that evaluation does not reach (auxiliary heads), the model is run once more with the
    control flow of training.

    Args:
        model: any module; it is left as it was.
        example_inputs: one tensor (N, C, H, W), or a tuple or dictionary of what the model takes.
        limits: of time and memory.

    Raises:
        InputError: the forward pass fails, or takes longer or more memory than `limits` allow; the layer is named.
    """
    tracer = _Tracer(model, limits or Limits())
    with watched(model), _attribute_reads(model, tracer.result.attributes_read):
        try:
            _pass(model, example_inputs, tracer, evaluating)
        except InputError:
            raise
        except Exception as error:  # the forward pass is the user's code
            if is_out_of_memory(error):
                raise
            raise InputError(_cannot(tracer, example_inputs, error)) from error
        if tracer.unreached():
            tracer.steps, counted = tracer.result.training_steps, list(tracer.result.operations)
            try:
                _pass(model, example_inputs, tracer, training_flow)
            except InputError:
                raise
            except Exception as error:  # such as a detector, which in training asks for targets
                if is_out_of_memory(error):
                    raise
                tracer.result.training_steps.clear()
            tracer.result.operations = counted  # MACs are those of inference
    for name, dims in tracer.result.tensors.items():
        if name not in tracer.used and name in tracer.learned:
            for dim in dims:
                axes.freeze(dim, "no forward pass reached it, so whether it still fits what feeds it is not known")
    return tracer.result


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Run `model` without gradients and without kernels that hide what an attention computes; draws leave no trace.

    torch's attention layers are traced in the form that they have once they are narrowed.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    fused = [module for module in model.modules() if holds_scale(module) and module.fused_attn]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        with (
            torch.random.fork_rng(devices=[]),
            NarrowAttention.standing_in(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def holds_scale(module: nn.Module) -> bool:
    """Return whether an attention can be told to use its stored scale instead of 1/sqrt(head width)."""
    return hasattr(module, "fused_attn") and isinstance(getattr(module, "scale", None), (float, Tensor))


def _pass(
    model: nn.Module,
    example_inputs: Inputs,
    tracer: _Tracer,
    mode: Callable[[nn.Module], contextlib.AbstractContextManager[None]],
) -> None:
    """Run the model once under `tracer`; what comes out of it keeps its size."""
    from compress.graph.rules import freeze_means

    own = mapped(example_inputs, Tensor.clone)
    for tensor in tensors_in(own):
        tracer.dims[tensor] = [axes.fresh(n, "it belongs to the input") for n in tensor.shape]
    tracer.stack.clear()
    with mode(model), _module_hooks(model, tracer), _AttentionScale(tracer), tracer:
        output = model(own) if isinstance(own, Tensor) else model(**own) if isinstance(own, dict) else model(*own)
    for tensor in tensors_in(output):
        for dim in tracer.of(tensor):
            axes.freeze(dim, "it is an output of the model")
    freeze_means(tracer, tensors_in(output))


def _cannot(tracer: _Tracer, example_inputs: Inputs, error: Exception) -> str:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example_inputs))
    return (
        f"the model cannot be traced: layer {tracer.module or '(top)'!r} fails on an input of shape {shapes}: "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    )


class _Tracer(TorchDispatchMode):
    """Keeps the dimensions of every live tensor and applies one rule for each operation."""

    def __init__(self, model: nn.Module, limits: Limits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Trace()
        self.model = model
        self.dims = WeakTensorKeyDictionary()
        self.sources = WeakTensorKeyDictionary()
        self.means = WeakTensorKeyDictionary()
        self.operation, self.activation = "", False
        self.steps = self.result.steps
        self.used: set[str] = set()
        self.learned = {name for name, _ in model.named_parameters()}
        self.stack: list[str] = []
        self.adds: list[tuple[set[int], int]] = []
        self.limits = limits
        self.started = time.monotonic()
        self.memory = peak_gigabytes()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.dims[tensor] = self.result.tensors[name] = [axes.fresh(n) for n in tensor.shape]
            self.sources[tensor] = (name,) if isinstance(tensor, nn.Parameter) else ()

    @property
    def module(self) -> str:
        return self.stack[-1] if self.stack else ""

    def of(self, tensor: Tensor) -> Dims:
        """Return the dimensions of a tensor; one that came from elsewhere gets frozen ones."""
        if tensor not in self.dims:
            self.dims[tensor] = [axes.fresh(n, "it is a constant made in the forward pass") for n in tensor.shape]
        dims: Dims = self.dims[tensor]
        return dims

    def set(self, tensor: Tensor, dims: Dims) -> None:
        """Enter the dimensions of a result."""
        if [axes.dim_size(dim) for dim in dims] != list(tensor.shape):
            raise RuntimeError(f"axes {[axes.dim_size(d) for d in dims]} do not fit a tensor {tuple(tensor.shape)}")
        self.dims[tensor] = dims

    def unreached(self) -> bool:
        """Return whether the model has parameters that no operation has used so far."""
        return any(name not in self.used for name, value in self.model.named_parameters() if value.numel())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from compress.graph.rules import POINTWISE, RULES, follow_means

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._check_limits()
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        self.operation, self.activation = func.overloadpacket.__name__, False
        rule: Callable[..., None] | None = RULES.get(self.operation)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = POINTWISE
        try:
            if rule is not None:
                rule(self, args, kwargs, out)
            else:
                self.unknown(self.operation, args, kwargs, out)
            follow_means(self, args, kwargs, out)
        except Exception as error:  # an input that the rule did not think of: nothing is known, and nothing narrowed
            if is_out_of_memory(error):
                raise
            if STRICT:
                raise
            self.unknown(self.operation, args, kwargs, out)
        self._note_sources(operands, out)
        inputs = tuple(tuple(self.of(tensor)) for tensor in operands)
        outputs = tuple(tuple(self.of(tensor)) for tensor in tensors_in(out))
        masked = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in operands)
        dynamic = self.operation == "nms" or (
            torch.Tag.dynamic_output_shape in func.tags and (masked or not self.operation.startswith("index"))
        )
        self.steps.append(Step(self.operation, self.module, inputs, outputs, dynamic))
        return out

    def _note_sources(self, operands: list[Tensor], out: Any) -> None:
        """Remember of each tensor that does not depend on the input from which parameters it was computed."""
        known = not self.activation and all(tensor in self.sources for tensor in operands)
        names = tuple(dict.fromkeys(name for tensor in operands for name in self.sources.get(tensor, ())))
        self.used.update(names)
        for tensor in tensors_in(out):
            if known:
                self.sources[tensor] = names
            elif tensor in self.sources:
                del self.sources[tensor]

    def unknown(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Freeze all that an operation without a rule touches."""
        reason = f"it feeds the operation {name}, which cannot be narrowed"
        for tensor in [*tensors_in(args), *tensors_in(kwargs)]:
            for dim in self.of(tensor):
                axes.freeze(dim, reason)
            for source in self.sources.get(tensor, ()):
                if len(self.result.tensors[source]) > 1:
                    self.result.outputs.setdefault(source, (0,))
        for tensor in tensors_in(out):
            self.set(tensor, [axes.fresh(n, reason) for n in tensor.shape])

    def _check_limits(self) -> None:
        seconds = time.monotonic() - self.started
        if seconds > self.limits.seconds:
            raise InputError(
                f"the model cannot be traced within {self.limits.seconds:g} s; it had reached layer "
                f"{self.module or '(top)'!r}; use a smaller input size or raise prune.trace_seconds"
            )
        if peak_gigabytes() - self.memory > self.limits.gigabytes:
            raise InputError(
                f"tracing the model takes more than {self.limits.gigabytes:g} GB; it had reached layer "
                f"{self.module or '(top)'!r}; use a smaller input size or raise prune.trace_gigabytes"
            )


class _AttentionScale(TorchFunctionMode):
    """Notes the modules whose attention takes its scale from the width of a head."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fused = func is nn.functional.scaled_dot_product_attention and (kwargs or {}).get("scale") is None
        if fused and not isinstance(self.tracer.model.get_submodule(self.tracer.module), nn.MultiheadAttention):
            self.tracer.result.unscaled_attention.add(self.tracer.module)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _module_hooks(model: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Keep the stack of running modules and find residual blocks: modules that add to their own input."""
    handles, names = [], {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        tracer.stack.append(names[module])
        tracer.adds.append((set(), id(args[0]) if args and isinstance(args[0], Tensor) else 0))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        name = tracer.stack.pop()
        added, own_input = tracer.adds.pop()
        if not (own_input in added and isinstance(output, Tensor) and output.shape == args[0].shape):
            return
        if any(block == name or block.startswith(f"{name}.") for block in tracer.result.residual_blocks):
            return
        for x, y in zip(tracer.of(args[0]), tracer.of(output), strict=True):
            if axes.expand(x) != axes.expand(y) and not (axes.is_frozen(x) and axes.is_frozen(y)):
                return
        tracer.result.residual_blocks.append(name)

    for module in names:
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=False))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _attribute_reads(model: nn.Module, reads: set[tuple[str, str]]) -> Iterator[None]:
    """Note which whole-number attributes of modules the forward pass reads (`num_heads`, `dim`)."""
    names = {id(module): name for name, module in model.named_modules()}
    classes = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}

    def spy(module: Any, attribute: str) -> Any:
        value = object.__getattribute__(module, attribute)
        if isinstance(value, (int, tuple)) and not isinstance(value, bool) and id(module) in names:
            reads.add((names[id(module)], attribute))
        return value

    patched = [cls for cls in classes if "__getattribute__" not in cls.__dict__]
    for cls in patched:
        cls.__getattribute__ = spy  # type: ignore[method-assign]
    try:
        yield
    finally:
        for cls in patched:
            del cls.__getattribute__
