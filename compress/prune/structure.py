"""Structure pruning: from a model and a budget to a plan of what is removed.

Trace the model into groups of coupled widths, score their units, choose widths that meet the budget, write the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from compress.core.config import Config
from compress.core.errors import CompressError, InputError, did_you_mean
from compress.core.problems import validated
from compress.core.progress import say
from compress.core.tensors import Inputs, tensors_in
from compress.core.wrappers import unwrapped
from compress.criteria import unit_criteria
from compress.criteria.base import Batches, CriterionOptions, ScoringData
from compress.criteria.score import score_units
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked, conflict
from compress.graph.cost_model import CostModel
from compress.graph.exactness import Exactness, Fault
from compress.graph.graph import Graph, Skip, inside
from compress.graph.plan import Plan, make_plan
from compress.graph.scope import in_scope
from compress.graph.select import Choice, Selector
from compress.graph.tracer import Limits
from compress.graph.widths import WidthRules
from compress.prune.blocks import block_influence, least_influential
from compress.prune.budget import BudgetConfig, meet_budget
from evaluators.cost import count_macs
from evaluators.latency.targets import width_multiple

Unit = Literal["channels", "heads", "head_dims", "mlp"]


class StructureConfig(Config):
    """Removal of whole channels, heads, head widths, MLP units and residual blocks: tensors really shrink."""

    kind: Literal["structure"] = Field(description="tensors shrink")
    criterion: str = Field(
        "dimap", description="how units are ranked", json_schema_extra={"enum": list(unit_criteria.names())}
    )
    options: CriterionOptions = Field(CriterionOptions(), description="what the criterion leaves open")
    budget: BudgetConfig | None = Field(None, description="what the model may cost afterwards; this or `ratio`")
    ratio: float | None = Field(None, gt=0, lt=1, description="share of all units to remove; this or `budget`")
    allocation: Literal["global", "module", "uniform"] = Field(
        "global", description="units compete across the model, within one kind, or every layer loses the same share"
    )
    units: list[Unit] = Field(
        ["channels", "heads", "head_dims", "mlp"], min_length=1, description="kinds of units that may be removed"
    )
    blocks: float = Field(
        0, ge=0, description="residual blocks to remove first, those that change the stream least: number or share"
    )
    align: Literal["auto"] | int = Field(
        "auto", description="widths of channels and MLPs become multiples of this; auto: what the target runs fastest"
    )
    min_width: int = Field(1, ge=1, description="channels or MLP units that every layer keeps at least")
    min_fraction: float = Field(0.1, gt=0, le=1, description="share of its units that every layer keeps at least")
    include: list[str] = Field([], description="globs over layers; if given, only these are narrowed")
    exclude: list[str] = Field([], description="globs over layers that stay whole")
    steps: int = Field(1, ge=1, le=100, description="reach the budget in so many steps, fine-tuning between them")
    step_epochs: int = Field(1, ge=1, description="epochs of fine-tuning between two steps")
    calibration_batches: int = Field(4, ge=1, description="training batches for criteria and blocks that need data")
    bn_batches: int = Field(20, ge=0, description="training batches to re-estimate batch norms on after pruning")
    sensitivity: bool = Field(False, description="scan how much each layer alone can lose, and report it")
    trace_seconds: float = Field(120, gt=0, description="a model that takes longer to trace is refused")
    trace_gigabytes: float = Field(8, gt=0, description="a model that takes more memory to trace is refused")

    @field_validator("criterion")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in unit_criteria:
            names = unit_criteria.names()
            raise ValueError(f"unknown criterion; allowed: {', '.join(names)}{did_you_mean(value, names)}")
        return value

    @field_validator("align")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("align must be auto or at least 1")
        return value

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.budget is None) == (self.ratio is None):
            raise ValueError("give exactly one of budget and ratio")
        return self


@dataclass(frozen=True)
class Setting:
    """What planning needs to know besides model and config.

    `batches` yields calibration (images, labels); `multiple` is the target's width multiple for `align: auto`;
    `measure` gives the latency of a small module as a fraction of the dense one's. On the way to a budget in steps,
    `target` is this step's fraction, `dense` the cost and `full` the widths of the model before the first step.
    """

    batches: Batches | None = None
    device: str = "cpu"
    seed: int = 0
    multiple: int = 1
    measure: Callable[[nn.Module], float] | None = None
    target: float | None = None
    dense: int | None = None
    full: Mapping[str, int] = field(default_factory=dict)


def prunable(model: nn.Module, example_inputs: Inputs, config: StructureConfig) -> Graph:
    """Return the groups of `model` that `config` lets pruning touch, each tried out.

    Raises:
        InputError: the model cannot be traced, a glob matches nothing, or nothing is left to prune.
    """
    limits = Limits(config.trace_seconds, config.trace_gigabytes)
    graph = checked(model, build_graph(model, example_inputs, limits), example_inputs)
    return in_scope(graph, model, config.units, config.include, config.exclude)


def plan_structure(
    model: nn.Module, example_inputs: Inputs, config: StructureConfig, setting: Setting | None = None
) -> Plan:
    """Return the plan that brings `model` to the budget (or removes the ratio) of `config`; nothing is changed.

    The plan has been checked: the narrowed model computes what the dense one does with the removed units silenced.

    Args:
        model: on `setting.device`.
        example_inputs: one sample on the same device: a tensor (1, C, H, W), or a tuple or dictionary of tensors.
        config: what to remove.
        setting: data, target and seed.

    Raises:
        InputError: the model or the config does not allow it; the layer or key is named.
    """
    setting = setting or Setting()
    graph = prunable(model, example_inputs, config)
    dropped = _dropped(model, graph, config, setting)
    graph = replace(graph, groups=tuple(g for g in graph.groups if not inside(g.name, dropped)))
    exact = Exactness(model, example_inputs)
    if dropped and (fault := exact.fault(graph, {}, dropped)) is not None:
        raise InputError(f"prune.blocks: the model does not run without {', '.join(dropped)} ({fault.reason})")
    while True:
        scored, choice, plan = _chosen(model, graph, config, setting, dropped)
        fault = exact.fault(scored, choice.kept, dropped, finished=plan)
        if fault is None:
            _compare_costs(model, example_inputs, exact, plan)
            return plan
        graph = _mended(graph, scored, choice, partial(exact.fault, scored, dropped=dropped), fault)


def _chosen(
    model: nn.Module, graph: Graph, config: StructureConfig, setting: Setting, dropped: tuple[str, ...]
) -> tuple[Graph, Choice, Plan]:
    """Score the units and choose widths; return the graph as scored, the choice, and the plan of it."""
    scored, scores = scored_units(model, graph, config, setting)
    align = setting.multiple if config.align == "auto" else config.align
    rules = WidthRules(align, config.min_width, config.min_fraction, full=setting.full)
    counted = config.budget.counted if config.budget else "macs"
    selector = Selector(scored, scores, CostModel(scored, counted, dropped, setting.dense), config.allocation, rules)

    def written(choice: Choice) -> Plan:
        return make_plan(model, scored, choice.kept, dropped=dropped, align=align)

    if config.budget is None:
        share = config.ratio or 0.0
        choice = selector.removing(share if setting.target is None else 1 - setting.target)
    else:
        measure = _measured(model, setting, written)
        choice = meet_budget(selector, config.budget, rules, measure, setting.target)
    return scored, choice, written(choice)


def _mended(
    graph: Graph,
    scored: Graph,
    choice: Choice,
    faulty: Callable[[Mapping[str, Tensor]], Fault | None],
    fault: Fault,
) -> Graph:
    """Return the graph without what made a choice fail: the groups at fault are tied or left whole.

    Heads that each kept units of their own must first keep the same ones.
    """
    full = graph.widths()
    ties = [tuple(name for name in tie if name in choice.kept) for tie in graph.ties]
    bound = {name for tie in ties for name in tie}
    lanes = [tie for tie in ties if tie] + [(name,) for name in choice.kept if name not in bound]
    lanes = [lane for lane in lanes if any(len(choice.kept[name]) < full[name] for name in lane)]

    def fails(some: Sequence[tuple[str, ...]]) -> bool:
        return faulty({name: choice.kept[name] for lane in some for name in lane}) is not None

    suspects = [lane for lane in lanes if not set(lane).isdisjoint(fault.groups)]
    guilty = conflict(suspects if suspects and fails(suspects) else lanes, fails)
    names = {name for lane in guilty for name in lane}
    free = {group.name for group in scored.groups if group.name in names and group.order is not None}
    if free:
        return replace(graph, groups=tuple(replace(g, rigid=g.rigid or g.name in free) for g in graph.groups))
    if len(guilty) > 1:
        tie = tuple(group.name for group in graph.groups if group.name in names)
        return replace(graph, ties=(*(old for old in graph.ties if names.isdisjoint(old)), tie))
    say(f"left whole, and the widths are chosen again: {', '.join(sorted(names))}: {fault}")
    narrowed = {layer for g in graph.groups if g.name not in names for layer in g.layers}
    skips = [
        Skip(f"{layer}:{g.kind}" if layer in narrowed else layer, f"{g.kind} stay whole: {fault}")
        for g in graph.groups
        if g.name in names
        for layer in g.layers
    ]
    return replace(
        graph,
        groups=tuple(group for group in graph.groups if group.name not in names),
        skipped=(*graph.skipped, *skips),
        ties=tuple(tie for tie in graph.ties if names.isdisjoint(tie)),
    )


def _compare_costs(model: nn.Module, example_inputs: Inputs, exact: Exactness, plan: Plan) -> None:
    """Count what the plan foretells where not every shape of the narrowed model was seen.

    Raises:
        CompressError: the narrowed model does not cost what the plan says.
    """
    if exact.complete:
        return
    before, after = count_macs(model, example_inputs), count_macs(apply(plan, model), example_inputs)
    slack = abs(before - plan.macs[0]) + 0.005 * before  # what the tracer does not count is outside of any choice
    if abs(after - plan.macs[1]) > slack:
        raise CompressError(
            f"the narrowed model takes {after:,} MACs where the plan foretells {plan.macs[1]:,} "
            f"(dense: {before:,} counted, {plan.macs[0]:,} traced); please report the model"
        )


def _measured(
    model: nn.Module, setting: Setting, written: Callable[[Choice], Plan]
) -> Callable[[Choice], float] | None:
    if setting.measure is None:
        return None
    measure = setting.measure
    return lambda choice: measure(apply(written(choice), model))


def scored_units(
    model: nn.Module, graph: Graph, config: StructureConfig, setting: Setting
) -> tuple[Graph, dict[str, Tensor]]:
    """Return what each unit is worth by the config's criterion, and the graph with its repeats matched by that."""
    data = ScoringData(
        graph=graph,
        batches=setting.batches,
        device=setting.device,
        generator=torch.Generator().manual_seed(setting.seed),
        options=config.options,
        counted=config.budget.counted if config.budget else "macs",
    )
    return score_units(model, graph, config.criterion, data)


def _dropped(model: nn.Module, graph: Graph, config: StructureConfig, setting: Setting) -> tuple[str, ...]:
    """Return the residual blocks to remove; on a step that is not the first they are gone already."""
    if not config.blocks or setting.full:
        return ()
    if setting.batches is None:
        raise InputError("prune.blocks: removing blocks needs data to rank them on; got data.name none; allowed 0")
    images = (batch.to(setting.device, copy=True) for batch, _ in setting.batches())
    return least_influential(block_influence(model, graph.blocks, images), config.blocks)


def plan(
    model: nn.Module,
    example_inputs: Inputs,
    criterion: str = "dimap",
    budget: Mapping[str, float] | None = None,
    *,
    batches: Batches | None = None,
    multiple: int | None = None,
    **options: Any,
) -> Plan:
    """Return a plan for `model`: `compress.plan(model, x, budget={"macs": 0.5})`; see `StructureConfig` for options.

    Args:
        model: any module.
        example_inputs: on the model's device: a tensor (N, ...) of which the first sample is used, or one sample as a
            tuple (positional arguments) or dictionary (keyword arguments).
        criterion: how units are ranked.
        budget: `{"macs": f}`, `{"params": f}`: the fraction to keep.
        batches: yields (images, labels), for criteria that need data.
        multiple: what widths are multiples of where `align` is not given; None: what this machine runs fastest.
        options: further fields of `StructureConfig`.

    Raises:
        InputError: the model, a name or a value does not allow it.
    """
    config = validated(StructureConfig, {"kind": "structure", "criterion": criterion, "budget": budget, **options})
    if config.budget is not None and config.budget.kind == "latency":
        raise InputError("budget.latency: a recipe measures latency; allowed here: macs, params")
    if config.align == "auto" and multiple is None:
        multiple = width_multiple("local").value
    if isinstance(example_inputs, Tensor):
        example_inputs = example_inputs[:1]
    device = str(next(tensors_in(example_inputs)).device)
    return plan_structure(unwrapped(model), example_inputs, config, Setting(batches, device, multiple=multiple or 1))
