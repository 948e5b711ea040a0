"""Which widths the attributes follow that modules keep beside their tensors (`num_heads`), while that is found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from compress.graph.apply import like
from compress.graph.graph import Candidate, Formula, Graph, value_of

Key = tuple[str, str, bool, tuple[str, ...]]
"""A class of modules, the name of an attribute, whether they handle such widths themselves, and what it may follow."""


class AttributeSetting:
    """A choice for every candidate of `graph`: the label of what it follows, or None; first the likeliest."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.labels: dict[Key, str | None] = {
            key_of(each): next(iter(each.options)) if each.handled else None for each in graph.candidates
        }

    def enter(self, small: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Give the attributes of a narrowed model the values of this choice."""
        for candidate, value in zip(self.graph.candidates, self.values(kept), strict=True):
            module = small.get_submodule(candidate.module)
            setattr(module, candidate.attribute, like(getattr(module, candidate.attribute), value))

    def values(self, kept: Mapping[str, Tensor]) -> tuple[int | tuple[int, ...], ...]:
        """Return what this choice gives the attribute of every candidate."""
        widths = {**self.graph.widths(), **{name: len(units) for name, units in kept.items()}}
        return tuple(self._value(candidate, widths) for candidate in self.graph.candidates)

    def _value(self, candidate: Candidate, widths: Mapping[str, int]) -> int | tuple[int, ...]:
        formula = self._formula(candidate)
        if formula is not None:
            return value_of(formula, widths)
        value = getattr(self.model.get_submodule(candidate.module), candidate.attribute)
        return value if isinstance(value, int) else tuple(value)

    def settled(self) -> Graph:
        """Return the graph with the attributes of this choice."""
        attributes = {name: dict(values) for name, values in self.graph.attributes.items()}
        for candidate in self.graph.candidates:
            formula = self._formula(candidate)
            if formula is not None:
                attributes.setdefault(candidate.module, {})[candidate.attribute] = formula
        return replace(self.graph, attributes=attributes)

    def _formula(self, candidate: Candidate) -> Formula | None:
        """Return what an attribute follows; None: nothing."""
        label = self.labels[key_of(candidate)]
        return None if label is None else candidate.options.get(label)


def key_of(candidate: Candidate) -> Key:
    """Return what a choice for a candidate holds for: its attribute in all modules of its class.

    Those that see other widths of that size are apart: a label means something else there.
    """
    return candidate.kind, candidate.attribute, candidate.handled, tuple(candidate.options)
