"""What is known of a model, handed on from one stage to the next for as long as it keeps its structure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import nn

from compress.core.tensors import Inputs, tensors_in
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.graph import Graph
from compress.graph.tracer import Limits
from evaluators.cost import Macs, Masks, count_macs, count_params, parameter_macs


@dataclass
class Known:
    """The width graph and the MACs of a model, each found when first asked for.

    Training and masks leave both as they are; where the model has come to have other layers or shapes, or is asked
    about for other inputs, both are found anew.
    """

    _of: Hashable = None
    _graph: Graph | None = None
    _macs: int | None = None
    _parameter_macs: Macs | None = None

    def graph(self, model: nn.Module, inputs: Inputs, limits: Limits | None = None) -> Graph:
        """Return the groups of `model`, each tried out; `limits` are those of the trace, if there is one.

        Raises:
            InputError: the model cannot be traced.
        """
        self._look_at(model, inputs)
        if self._graph is None:
            self._graph = checked(model, build_graph(model, inputs, limits), inputs)
        return self._graph

    def macs(self, model: nn.Module, inputs: Inputs) -> int:
        """Return the MACs for one image of the shape of `inputs`."""
        self._look_at(model, inputs)
        if self._macs is None:
            known = self._parameter_macs
            self._macs = count_macs(model, inputs) if known is None else known.total
        return self._macs

    def parameter_macs(self, model: nn.Module, inputs: Inputs) -> Macs:
        """Return the MACs for one image of the shape of `inputs`, told apart by parameter."""
        self._look_at(model, inputs)
        if self._parameter_macs is None:
            self._parameter_macs = parameter_macs(model, inputs)
        return self._parameter_macs

    def costs(self, model: nn.Module, inputs: Inputs, masks: Masks | None) -> dict[str, int]:
        """Return params and macs, and what is left of each under masks: nonzero_params, nonzero_macs."""
        params, nonzero = count_params(model, masks)
        macs = self.macs(model, inputs)
        left = self.parameter_macs(model, inputs).nonzero(masks) if masks else macs
        return {"params": params, "nonzero_params": nonzero, "macs": macs, "nonzero_macs": left}

    def _look_at(self, model: nn.Module, inputs: Inputs) -> None:
        """Forget what is known where it was of another structure."""
        structure = (
            tuple((name, type(module)) for name, module in model.named_modules()),
            tuple((name, tuple(value.shape)) for name, value in model.named_parameters()),
            tuple(tuple(tensor.shape) for tensor in tensors_in(inputs)),
        )
        if structure != self._of:
            self._of, self._graph, self._macs, self._parameter_macs = structure, None, None, None
