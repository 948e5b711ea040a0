"""Which layers of a pruned model are refitted, to what, and which cannot be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.criteria.consumers import is_reader
from compress.graph.graph import inside
from compress.graph.plan import Plan
from compress.prune.compensation.flow import Ways
from compress.prune.compensation.norms import can_unfold


@dataclass(frozen=True)
class Target:
    """A layer that is refitted.

    Attributes:
        layer: its name.
        norm: the batch norm that alone reads it, if there is one.
        kept: the outputs of the dense layer that the pruned one still has; None: all.
        scale: what multiplies its output (and norm) on the way to the sum that is to be right; None: its own output is.
        source: the dense layer whose sum that is, where it is another one: the last of blocks that were removed.
        blocks: those blocks.
    """

    layer: str
    norm: str | None = None
    kept: Tensor | None = None
    scale: Tensor | None = None
    source: str | None = None
    blocks: tuple[str, ...] = ()


def targets(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    ways: tuple[Ways, Ways],
    norms: Mapping[str, str],
    held: Collection[str] = (),
    within: Collection[str] | None = None,
) -> tuple[list[Target], dict[str, str]]:
    """Return what is refitted, in the order in which it runs, and for what reason other layers (or blocks) are not.

    What reads less than before, and what precedes removed blocks; and behind the first of these what ends in a residual
    sum, and the last layer, though they read as much as before: what they read is no longer what they were made for.

    Args:
        small: the pruned model.
        dense: the model before.
        plan: what made the one of the other.
        ways: where outputs go in the small and in the dense model.
        norms: layer -> the batch norm that alone reads it.
        held: names of weights that masks hold.
        within: modules; layers that read as much as before are refitted inside them alone. None: anywhere.
    """
    of_small, of_dense = ways
    runs, reasons = _runs(dense, plan, of_small, of_dense)
    wanted = {layer for layer in narrowed_readers(small, plan, reasons)} | runs.keys()
    behind = {name for name in _behind(wanted, of_small, of_dense) if within is None or inside(name, within)}
    found: list[Target] = []
    for layer in [name for name in of_small.order if name in wanted | behind] + sorted(wanted - set(of_small.order)):
        norm = norms.get(layer)
        why = _refusal(small, layer, norm, of_small, of_dense, held)
        if why is not None:
            if layer in wanted:
                reasons[layer] = why
            continue
        rows = plan.kept.get(f"{layer}.weight", {}).get(0)
        kept = None if rows is None else torch.tensor(rows)
        blocks, source = runs.get(layer, ((), None))
        scale = of_small.sums.get(layer) if layer in of_dense.sums else None
        if source is not None:
            scale = {**of_small.into, **of_small.sums}[layer]
        found.append(Target(layer, norm, kept, scale, source, blocks))
    return found, reasons


def narrowed_readers(small: nn.Module, plan: Plan, reasons: dict[str, str]) -> list[str]:
    """Return the layers that read fewer inputs than before; `reasons` gets those that are of no kind to refit."""
    found = []
    for tensor, dims in plan.kept.items():
        owner, _, leaf = tensor.rpartition(".")
        owner, _, parametrised = owner.partition(".parametrizations.")
        module = small.get_submodule(owner)
        if leaf == "weight" and is_reader(module):
            if 1 in dims:
                found.append(owner)
        elif parametrised and 1 in dims:
            reasons[owner] = "its weight is computed from other parameters"
        elif leaf == "in_proj_weight" and 1 in dims:
            reasons[owner] = "torch's own attention reads it by one weight for three layers"
        elif leaf == "weight" and getattr(module, "transposed", False) and 0 in dims:
            reasons[owner] = "it is a transposed convolution"
    return found


def _runs(
    dense: nn.Module, plan: Plan, small: Ways, of_dense: Ways
) -> tuple[dict[str, tuple[tuple[str, ...], str]], dict[str, str]]:
    """Return layer -> (the removed blocks that it makes up for, the dense layer after which its sum is theirs)."""
    runs: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    order = {name: place for place, (name, _) in enumerate(dense.named_modules())}
    for block in sorted(plan.dropped, key=lambda name: order[name]):
        if block in small.entries:
            runs.setdefault(small.entries[block][0], []).append(block)
        else:
            reasons[block] = "no layer before the removed block can be refitted to replace it"
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for layer, blocks in runs.items():
        there = of_dense.exits.get(blocks[-1])
        ends = layer in small.into or layer in small.sums
        if there is None or not ends or there[1] != small.entries[blocks[-1]][1]:
            reasons |= dict.fromkeys(blocks, "the removed block ends in no sum that the layer before could give")
        else:
            found[layer] = tuple(blocks), there[0]
    return found, reasons


def _behind(wanted: Collection[str], small: Ways, dense: Ways) -> set[str]:
    """Return the layers behind the first of `wanted` that end in a sum in both models, and the last layer."""
    places = [place for place, name in enumerate(small.order) if name in wanted]
    later = small.order[min(places) + 1 :] if places else []
    return {name for name in later if name in small.sums and name in dense.sums} | set(later[-1:])


def _refusal(
    small: nn.Module, layer: str, norm: str | None, of_small: Ways, of_dense: Ways, held: Collection[str]
) -> str | None:
    """Return why a layer cannot be refitted, if so."""
    calls = of_small.calls[layer]
    if calls == 0 or of_dense.calls[layer] == 0:
        return "it does not run as a layer in evaluation"
    if calls > 1 or of_dense.calls[layer] > 1:
        return f"it runs {max(calls, of_dense.calls[layer])} times in one pass"
    if f"{layer}.weight" in held:
        return "masks hold some of its weights at zero"
    if norm is not None and not can_unfold(small.get_submodule(norm)):
        return f"its batch norm {norm} has no scale and shift of its own"
    return None
