"""Weight pruning: masks over single weights by exact counts, or N:M patterns. Tensors keep their shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from compress.core.config import Config
from compress.core.environment import one_thread
from compress.core.errors import InputError
from compress.core.progress import track
from compress.core.sections import NameOf
from compress.criteria import Allocation, WeightCriterion, weight_criteria
from compress.prune.modules import Assignment, Skipped, Weight, assign_modules


class WeightsConfig(Config):
    """Weight pruning by masks: the file does not shrink, the weights become zeros."""

    kind: Literal["weights"] = Field("weights", description="single weights are masked")
    criterion: Annotated[str, NameOf(weight_criteria)] = Field("dimap", description="what a weight is worth")
    sparsity: float | None = Field(None, gt=0, lt=1, description="share of the weights that take part to remove")
    pattern: str | None = Field(
        None, pattern=r"^[1-9]\d*:[1-9]\d*$", description="N:M instead of a sparsity: keep N of every M inputs, as 2:4"
    )
    allocation: Allocation | None = Field(
        None, description="who competes: the layers of a module, of the whole model, or none; default: the criterion's"
    )
    modules: dict[str, list[str]] | None = Field(
        None, description="own modules instead of the built-in rules: name -> globs over weight names"
    )
    include: list[str] = Field([], description="globs over weight names; if given, only these take part")
    exclude: list[str] = Field([], description="globs over weight names that are left whole")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give exactly one of sparsity and pattern")
        if self.pattern is not None and self.n_of_m[0] >= self.n_of_m[1]:
            raise ValueError(f"pattern {self.pattern!r} removes nothing; allowed: N:M with N < M, as 2:4")
        if self.pattern is not None and self.allocation is not None:
            raise ValueError("allocation has no meaning with a pattern: every group of M is on its own")
        return self

    @property
    def n_of_m(self) -> tuple[int, int]:
        """The two numbers of `pattern`."""
        kept, group = (self.pattern or "").split(":")
        return int(kept), int(group)


@dataclass(frozen=True)
class LayerRow:
    """One masked weight: where it belongs, its size and how many of its entries are kept."""

    name: str
    module: str
    stage: str
    size: int
    kept: int


@dataclass(frozen=True)
class WeightPruning:
    """Masks (parameter name -> bool tensor, True is kept), what they do, and what they leave alone and why."""

    masks: dict[str, Tensor]
    rows: tuple[LayerRow, ...]
    skipped: tuple[Skipped, ...]

    def kept_by(self, *keys: Literal["name", "module", "stage"]) -> dict[str, float]:
        """Return the kept fraction per module, per stage, or per combination (joined by a space), in model order."""
        size: dict[str, int] = defaultdict(int)
        kept: dict[str, int] = defaultdict(int)
        for row in self.rows:
            group = " ".join(getattr(row, key) for key in keys)
            size[group] += row.size
            kept[group] += row.kept
        return {group: kept[group] / size[group] for group in size}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the masks, for JSON."""
        return {
            "size": sum(row.size for row in self.rows),
            "removed": sum(row.size - row.kept for row in self.rows),
            "kept_by_module": self.kept_by("module"),
            "kept_by_stage": self.kept_by("stage"),
            "layers": [asdict(row) for row in self.rows],
            "skipped": [asdict(skip) for skip in self.skipped],
        }


def prune_weights(model: nn.Module, config: WeightsConfig, seed: int = 0) -> WeightPruning:
    """Choose the weights of `model` to remove; the model itself is not changed (see `apply_masks`).

    With a sparsity, every pool of the allocation loses exactly `round(sparsity * its size)` weights; ties go by the
    model's order of layers, then by index. With a pattern N:M, of every M consecutive input channels (of one output
    channel at one kernel position, the layout that sparse tensor cores read) the N best stay.

    Raises:
        InputError: a weight is not finite, a glob matches nothing, nothing is left to prune, or a pool would vanish.
    """
    with one_thread():
        return _prune(model, config, torch.Generator().manual_seed(seed))


def _prune(model: nn.Module, config: WeightsConfig, generator: Generator) -> WeightPruning:
    _check_finite(model)
    assignment = assign_modules(model, config.modules, config.include, config.exclude)
    if config.pattern is not None:
        assignment = _divisible(model, assignment, config.n_of_m[1])
    if not assignment.weights:
        reasons = ", ".join(sorted({skip.reason for skip in assignment.skipped})) or "it has no parameters"
        raise InputError(f"prune: no weight of the model takes part ({reasons}); name some with modules")
    criterion = weight_criteria.get(config.criterion)()
    values = {weight.name: model.get_parameter(weight.name) for weight in assignment.weights}
    if config.pattern is not None:
        masks = _n_of_m_masks(values, config.n_of_m, criterion, generator)
    else:
        masks = _sparse_masks(values, assignment.weights, config, criterion, generator)
    ordered = {weight.name: masks[weight.name].to(values[weight.name].device) for weight in assignment.weights}
    return WeightPruning(ordered, _rows(assignment.weights, ordered), assignment.skipped)


def _sparse_masks(
    values: dict[str, nn.Parameter],
    weights: Sequence[Weight],
    config: WeightsConfig,
    criterion: WeightCriterion,
    generator: Generator,
) -> dict[str, Tensor]:
    """Return masks with an exact count per pool."""
    assert config.sparsity is not None
    masks: dict[str, Tensor] = {}
    pools = _pools(weights, config.allocation or criterion.allocation)
    for pool, names in track(pools.items(), "scoring weights", total=len(pools)):
        layers = [_flat(values[name]) for name in names]
        size = sum(layer.numel() for layer in layers)
        remove = round(config.sparsity * size)
        if remove == size:
            raise InputError(f"prune.sparsity: {config.sparsity} removes all {size} weights of {pool}")
        kept = criterion.keep(layers, remove, generator)
        if [mask.shape for mask in kept] != [layer.shape for layer in layers]:
            raise InputError(
                f"prune.criterion: the masks that {config.criterion!r} gives do not fit the weights of {pool}"
            )
        removed = size - sum(int(mask.count_nonzero()) for mask in kept)
        if removed != remove:
            raise InputError(
                f"prune.criterion: {config.criterion!r} removes {removed} weights of {pool}; wanted {remove}"
            )
        masks.update(zip(names, kept, strict=True))
    return masks


def _pools(weights: Sequence[Weight], allocation: Allocation) -> dict[str, list[str]]:
    """Return the names of the weights that compete with each other, per pool."""
    pools: dict[str, list[str]] = defaultdict(list)
    for weight in weights:
        pools[{"module": weight.module, "global": "the model", "uniform": weight.name}[allocation]].append(weight.name)
    return pools


def _n_of_m_masks(
    values: dict[str, nn.Parameter], n_of_m: tuple[int, int], criterion: WeightCriterion, generator: Generator
) -> dict[str, Tensor]:
    """Return masks that keep the N best of every M consecutive input channels."""
    kept, group = n_of_m
    masks = {}
    for name, value in track(values.items(), "scoring weights", total=len(values)):
        order = criterion.sound(criterion.order, _flat(value), generator).movedim(1, -1)
        groups = order.reshape(-1, group)
        worst = groups.sort(dim=1, stable=True).indices[:, : group - kept]
        mask = torch.ones_like(groups, dtype=torch.bool).scatter_(1, worst, False)
        masks[name] = mask.view(order.shape).movedim(-1, 1).contiguous()
    return masks


def _divisible(model: nn.Module, assignment: Assignment, group: int) -> Assignment:
    """Leave out the weights whose input channels do not come in whole groups of M, with the reason."""
    weights, skipped = [], list(assignment.skipped)
    for weight in assignment.weights:
        inputs = model.get_parameter(weight.name).shape[1]
        if isinstance(model.get_submodule(weight.name.rpartition(".")[0]), _ConvTransposeNd):
            skipped.append(Skipped(weight.name, "N:M is not defined for transposed convolutions"))
        elif inputs % group:
            skipped.append(Skipped(weight.name, f"{inputs} input channels are not divisible by {group}"))
        else:
            weights.append(weight)
    return Assignment(tuple(weights), tuple(skipped))


def _check_finite(model: nn.Module) -> None:
    """Refuse NaN and infinite values, all of them at once."""
    problems = []
    for name, parameter in model.named_parameters():
        if parameter.numel() and parameter.is_floating_point():
            low, high = torch.aminmax(parameter.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                problems.append(f"weight {name!r} of the model has NaN or infinite values")
    if problems:
        raise InputError(*problems)


def _flat(value: nn.Parameter) -> Tensor:
    """Return a weight on the CPU, where sums do not depend on the order in which threads arrive."""
    return value.detach().cpu().contiguous()


def _rows(weights: Sequence[Weight], masks: dict[str, Tensor]) -> tuple[LayerRow, ...]:
    return tuple(
        LayerRow(w.name, w.module, w.stage, masks[w.name].numel(), int(masks[w.name].count_nonzero())) for w in weights
    )
