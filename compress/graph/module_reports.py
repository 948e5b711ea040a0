"""What the modules of a running model tell that its operations do not.

Which one is running, which of them add to their own input, what their attention takes its scale from, and which of
their attributes are read, `training` among them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.core.modes import is_layer_of_torch
from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.recording import Recording


class AttentionScale(TorchFunctionMode):
    """Notes the modules whose attention takes its scale from the width of a head."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fused = func is nn.functional.scaled_dot_product_attention and (kwargs or {}).get("scale") is None
        if fused and not isinstance(self.recording.model.get_submodule(self.recording.module), nn.MultiheadAttention):
            self.recording.result.unscaled_attention.add(self.recording.module)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def running_modules(recording: Recording) -> Iterator[None]:
    """Keep the stack of running modules and find residual blocks: modules that add to their own input."""
    handles, names = [], {module: name for name, module in recording.model.named_modules()}

    def hand_on(tensors: Any) -> None:
        if recording.stack:
            recording.handed[recording.module] += (tuple(recording.of(tensor)) for tensor in tensors_in(tensors))

    def enter(module: nn.Module, args: Any) -> None:
        hand_on(args)
        recording.stack.append(names[module])
        recording.handed.setdefault(names[module], [])
        recording.adds.append((set(), id(args[0]) if args and isinstance(args[0], Tensor) else 0))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        name = recording.stack.pop()
        hand_on(output)
        added, own_input = recording.adds.pop()
        if not (own_input in added and isinstance(output, Tensor) and output.shape == args[0].shape):
            return
        if any(block == name or block.startswith(f"{name}.") for block in recording.result.residual_blocks):
            return
        for x, y in zip(recording.of(args[0]), recording.of(output), strict=True):
            if axes.expand(x) != axes.expand(y) and not (axes.is_frozen(x) and axes.is_frozen(y)):
                return
        recording.result.residual_blocks.append(name)

    for module in names:
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=False))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attribute_reads(recording: Recording) -> Iterator[None]:
    """Note which whole-number attributes of modules the forward pass reads (`num_heads`, `dim`), and `training`."""
    model, reads = recording.model, recording.result.attributes_read
    names = {id(module): name for name, module in model.named_modules()}
    classes = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}

    def spy(module: Any, attribute: str) -> Any:
        value = object.__getattribute__(module, attribute)
        if attribute == "training":
            recording.training_read |= bool(recording.stack) and not is_layer_of_torch(module)
        elif isinstance(value, (int, tuple, list)) and not isinstance(value, bool) and id(module) in names:
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
