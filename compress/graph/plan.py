"""The plan of a structural pruning: what is removed, written down apart from doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.graph.graph import Graph, Group, Skip, inside, value_of
from compress.graph.watch import holds_scale


@dataclass(frozen=True)
class LayerChange:
    """One width before and after: channels, heads, width of a head or hidden units of an MLP.

    `unit` is how many channels go at once (more than 1 in grouped convolutions). `normalised`: a norm runs over the
    width, so that without some units it gives the others other values; that is by design, and the plan was checked
    with the norm taken over what stays.
    """

    name: str
    kind: str
    before: int
    after: int
    stage: str
    unit: int = 1
    normalised: bool = False

    @property
    def narrows_norm(self) -> bool:
        """Whether units leave a width that a norm runs over."""
        return self.normalised and self.after < self.before


@dataclass(frozen=True)
class Plan:
    """Everything structural pruning does to a module; `compress.graph.apply.apply` carries it out.

    `kept` maps tensor name -> dimension -> indices that stay, in order. `dropped` are residual blocks that become the
    identity; `folded` are pairs (convolution, batch norm) to be made one. `macs` and `params` are (before, after).
    `sizes` says how long each dimension in `kept` was, by which a plan for another width is told; {}: not written down.
    """

    kept: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    layers: tuple[LayerChange, ...] = ()
    skipped: tuple[Skip, ...] = ()
    macs: tuple[int, int] = (0, 0)
    params: tuple[int, int] = (0, 0)
    align: int = 1
    sizes: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the table of widths, what stays whole and why, and the predicted cost."""
        rows = [(row.name, row.kind, str(row.before), f"{row.after}{' *' * row.narrows_norm}") for row in self.layers]
        rows.insert(0, ("layer", "kind", "before", "after"))
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(wide[i]) for i, cell in enumerate(row)).rstrip() for row in rows]
        if self.notes:
            lines.append(f"* {self.notes[0]}")
        lines += [f"removed block {name}" for name in self.dropped]
        lines += [f"left whole: {skip.layer} ({skip.reason})" for skip in self.skipped]
        for label, (before, after) in (("MACs", self.macs), ("parameters", self.params)):
            if before:
                lines.append(f"{label} {before:,} -> {after:,} ({after / before:.1%})")
        lines.append(f"widths in multiples of {self.align}")
        return "\n".join(lines)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a plan should know besides its rows."""
        widths = sum(row.narrows_norm for row in self.layers)
        if not widths:
            return ()
        return (
            f"a norm runs over {widths} of the narrowed widths: without some units it gives the others other values; "
            "that is by design, and the plan was checked with the norm taken over what stays",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from `to_dict`.

        Raises:
            InputError: the value is not a plan.
        """
        try:
            return cls(
                kept={
                    str(name): {int(dim): tuple(int(i) for i in indices) for dim, indices in dims.items()}
                    for name, dims in value["kept"].items()
                },
                attributes={
                    str(module): {str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}
                    for module, values in value["attributes"].items()
                },
                dropped=tuple(value["dropped"]),
                folded=tuple((conv, norm) for conv, norm in value["folded"]),
                layers=tuple(LayerChange(**row) for row in value["layers"]),
                skipped=tuple(Skip(**row) for row in value["skipped"]),
                macs=_pair(value["macs"]),
                params=_pair(value["params"]),
                align=int(value["align"]),
                sizes={
                    str(name): {int(dim): int(size) for dim, size in dims.items()}
                    for name, dims in value.get("sizes", {}).items()  # plans of 0.1.0 have none
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a pruning plan: {type(error).__name__}: {error}") from error

    def then(self, later: Plan) -> Plan:
        """Return the one plan that does this one and afterwards `later` (made for the module this one gives)."""
        kept = {name: dict(dims) for name, dims in self.kept.items()}
        sizes = {name: dict(dims) for name, dims in self.sizes.items()}
        for name, lengths in later.sizes.items():
            for dim, length in lengths.items():
                if dim not in self.kept.get(name, {}):
                    sizes.setdefault(name, {})[dim] = length
        for name, dims in later.kept.items():
            mine = kept.setdefault(name, {})
            for dim, indices in dims.items():
                mine[dim] = tuple(mine[dim][i] for i in indices) if dim in mine else indices
        attributes = {module: dict(values) for module, values in self.attributes.items()}
        for module, values in later.attributes.items():
            attributes.setdefault(module, {}).update(values)
        before = {(row.name, row.kind): row.before for row in self.layers}
        rows = {(row.name, row.kind): row for row in self.layers}
        for row in later.layers:
            first = before.get((row.name, row.kind), row.before)
            rows[row.name, row.kind] = replace(row, before=first)
        gone = later.dropped
        return Plan(
            kept={name: dims for name, dims in kept.items() if not inside(name, gone)},
            attributes={name: values for name, values in attributes.items() if not inside(name, gone)},
            dropped=self.dropped + later.dropped,
            folded=self.folded + later.folded,
            layers=tuple(row for row in rows.values() if not inside(row.name, gone)),
            skipped=later.skipped,
            macs=(self.macs[0], later.macs[1]),
            params=(self.params[0], later.params[1]),
            align=later.align,
            sizes={name: dims for name, dims in sizes.items() if not inside(name, gone)},
        )


def _pair(values: Any) -> tuple[int, int]:
    before, after = values
    return int(before), int(after)


def make_plan(
    model: nn.Module,
    graph: Graph,
    kept: Mapping[str, Tensor],
    *,
    dropped: tuple[str, ...] = (),
    folded: tuple[tuple[str, str], ...] = (),
    align: int = 1,
) -> Plan:
    """Write down the removal of all units but `kept` (group name -> unit indices) and of the blocks `dropped`.

    Groups without an entry in `kept` stay whole.
    """
    widths = {**graph.widths(), **{name: len(units) for name, units in kept.items()}}
    shapes = {name: tensor.shape for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    positions = _kept_positions(graph, kept, shapes, dropped)
    return Plan(
        kept=positions,
        attributes=_attribute_values(model, graph, widths, dropped),
        dropped=dropped,
        folded=folded,
        layers=tuple(_change(group, widths[group.name]) for group in graph.groups if not inside(group.name, dropped)),
        skipped=graph.skipped,
        macs=(graph.macs(), graph.macs(widths, dropped)),
        params=(graph.params(), graph.params(widths, dropped)),
        align=align,
        sizes={name: {dim: shapes[name][dim] for dim in dims} for name, dims in positions.items()},
    )


def _change(group: Group, width: int) -> LayerChange:
    first = next(part for part in group.slices if part.role == "out")
    unit = first.positions[0].numel() if group.kind == "channels" else 1
    return LayerChange(group.name, group.kind, group.size * unit, width * unit, group.stage, unit, group.normalised)


def _kept_positions(
    graph: Graph, kept: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], dropped: tuple[str, ...]
) -> dict[str, dict[int, tuple[int, ...]]]:
    masks: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
    for group in graph.groups:
        units = kept.get(group.name)
        if units is None or len(units) == group.size:
            continue
        removed = np.ones(group.size, dtype=bool)
        removed[units.cpu().numpy()] = False
        for part in group.slices:
            if not inside(part.tensor, dropped):
                length = shapes[part.tensor][part.dim]
                mask = masks.setdefault((part.tensor, part.dim), np.ones(length, dtype=bool))
                mask[part.positions.numpy()[removed].reshape(-1)] = False
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    written: dict[bytes, tuple[int, ...]] = {}  # most tensors keep what others keep: one tuple for all of them
    for (name, dim), mask in masks.items():
        alike = mask.tobytes()
        if alike not in written:
            written[alike] = tuple(mask.nonzero()[0].tolist())
        result.setdefault(name, {})[dim] = written[alike]
    return result


def _attribute_values(
    model: nn.Module, graph: Graph, widths: Mapping[str, int], dropped: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for name, attributes in graph.attributes.items():
        if inside(name, dropped):
            continue
        module = model.get_submodule(name)
        for attribute, formula in attributes.items():
            value = value_of(formula, widths)
            if value != getattr(module, attribute):
                result.setdefault(name, {})[attribute] = value
    for group in graph.groups:
        if group.kind == "head_dims" and widths[group.name] != group.size:
            owner = group.name.split(":")[0].rpartition(".")[0]
            if not inside(owner, dropped) and holds_scale(model.get_submodule(owner)):
                result.setdefault(owner, {})["fused_attn"] = False  # the plain path keeps the scale that was trained
    for name, caches in graph.caches.items():
        if not inside(name, dropped):
            result.setdefault(name, {}).update(caches)  # of the wide model
    return result
