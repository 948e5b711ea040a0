"""What is known of every live tensor while a model runs under the tracer: what the rules read and enter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from compress.core.tensors import tensors_in
from compress.graph import axes
from compress.graph.axes import Dim
from compress.graph.parts import Parts
from compress.graph.trace import Dims, Step, Trace


class Recording:
    """The dimensions of every live tensor, and which parameters it was computed from where no activation took part.

    `operation` is what just ran, in the module `module`; `activation` says that it was fed with parameters alone and
    gives an activation nevertheless. `parts` are tensors cut off others. `training_read` says that the model's own
    code has asked whether it is in training; `handed` has, of each module that ran, the dimensions of the tensors that
    the modules it called took and gave. `result` is the trace that comes of it.
    """

    def __init__(self, model: nn.Module, rejoined: Collection[int] = ()) -> None:
        self.model = model
        self.parts = Parts(rejoined)
        self.result = Trace()
        self.steps = self.result.steps
        self.dims = WeakTensorKeyDictionary()
        self.sources = WeakTensorKeyDictionary()
        self.means = WeakTensorKeyDictionary()
        self.operation, self.activation = "", False
        self.training_read = False
        self.handed: dict[str, list[tuple[Dim, ...]]] = {}
        self._used: set[str] = set()
        self.stack: list[str] = []
        self.adds: list[tuple[set[int], int]] = []
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.dims[tensor] = self.result.tensors[name] = [axes.fresh(n) for n in tensor.shape]
            self.sources[tensor] = (name,) if isinstance(tensor, nn.Parameter) else ()

    @property
    def module(self) -> str:
        """The dotted name of the module whose forward pass is running."""
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

    def begin(self, inputs: Iterable[Tensor]) -> None:
        """Begin a forward pass on these tensors, which keep their sizes."""
        for tensor in inputs:
            self.dims[tensor] = [axes.fresh(n, "it belongs to the input") for n in tensor.shape]
        self.stack.clear()

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

    def note_step(self, operands: Sequence[Tensor], out: Any, dynamic: bool) -> None:
        """Write down the operation that just ran, after its rule."""
        self._note_sources(operands, out)
        inputs = tuple(tuple(self.of(tensor)) for tensor in operands)
        outputs = tuple(tuple(self.of(tensor)) for tensor in tensors_in(out))
        self.steps.append(Step(self.operation, self.module, inputs, outputs, dynamic))

    def _note_sources(self, operands: Sequence[Tensor], out: Any) -> None:
        """Remember of each tensor that does not depend on the input from which parameters it was computed."""
        known = not self.activation and all(tensor in self.sources for tensor in operands)
        names = tuple(dict.fromkeys(name for tensor in operands for name in self.sources.get(tensor, ())))
        self._used.update(names)
        for tensor in tensors_in(out):
            if known:
                self.sources[tensor] = names
            elif tensor in self.sources:
                del self.sources[tensor]

    def unused(self) -> list[str]:
        """Return the parameters that no operation has used so far."""
        return [name for name, _ in self.model.named_parameters() if name not in self._used]
