"""Structure pruning: from a model and a budget to a plan of what is removed.

Trace the model into groups of coupled widths, score their units, choose widths that meet the budget, write the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compress.core.errors import CompressError, InputError
from compress.core.modes import as_imported
from compress.core.problems import validated
from compress.core.progress import say
from compress.core.tensors import Inputs, mapped, tensors_in
from compress.core.wrappers import unwrapped
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import Batches, ScoringData, matrices
from compress.graph.cost_model import CostModel
from compress.graph.exactness import Exactness
from compress.graph.graph import Graph, inside
from compress.graph.known import Known
from compress.graph.plan import Plan, make_plan
from compress.graph.scope import in_scope, left_whole
from compress.graph.select import Choice, Selector
from compress.graph.tracer import Limits
from compress.graph.widths import WidthRules
from compress.prune.blocks import block_influence, least_influential
from compress.prune.budget import meet_budget
from compress.prune.given import Source, batches_of, task_of
from compress.prune.proof import mended, with_counted_costs
from compress.prune.structure_config import StructureConfig
from evaluators.latency.targets.local import LocalTarget
from evaluators.latency.width_multiple import width_multiple
from evaluators.tasks import UNSIZED, Task, TaskConfig

Scored = tuple[Graph, dict[str, Tensor]]  # a graph with its repeats matched, and group name -> what each unit is worth


@dataclass(frozen=True)
class Setting:
    """What planning needs to know besides model and config.

    `batches` yields samples to calibrate on, for `task`; `multiple` is the target's width multiple for `align: auto`.
    On the way to a budget in steps, `target` is this step's fraction, `dense` the cost and `full` the widths of the
    model before the first step.
    """

    batches: Batches | None = None
    device: str = "cpu"
    seed: int = 0
    multiple: int = 1
    target: float | None = None
    dense: int | None = None
    full: Mapping[str, int] = field(default_factory=dict)
    task: Task = UNSIZED


def prunable(model: nn.Module, example_inputs: Inputs, config: StructureConfig, known: Known | None = None) -> Graph:
    """Return the groups of `model` that `config` lets pruning touch, each tried out; `known` has its graph, if any.

    Raises:
        InputError: the model cannot be traced, a glob matches nothing, or nothing is left to prune.
    """
    limits = Limits(config.trace_seconds, config.trace_gigabytes)
    graph = (known or Known()).graph(model, example_inputs, limits)
    return in_scope(graph, model, config.units, config.include, config.exclude)


def refuse_unreachable(graph: Graph, config: StructureConfig) -> None:
    """Raise InputError where the least widths of `graph` cost more than a budget of MACs or parameters.

    What only data or a target tell (blocks to remove, the multiple of `align: auto`) is left to the pruning itself.
    """
    if config.budget is None or config.latencies or config.blocks:
        return
    rules = WidthRules(1 if config.align == "auto" else config.align, config.min_width, config.min_fraction)
    scores = {group.name: torch.ones(group.size, dtype=torch.float64) for group in graph.groups}
    selector = Selector(graph, scores, CostModel(graph, config.budget.counted), config.allocation, rules)
    if selector.lowest > config.budget.target:
        meet_budget(selector, config.budget, rules)


def plan_structure(
    model: nn.Module,
    graph: Graph,
    example_inputs: Inputs,
    config: StructureConfig,
    setting: Setting | None = None,
    scored: Scored | None = None,
) -> Plan:
    """Return the plan that brings `model` to the budget (or removes the ratio) of `config`; nothing is changed.

    The plan has been checked: the narrowed model computes what the dense one does with the removed units silenced.

    Args:
        model: on `setting.device`.
        graph: what of it may go, see `prunable`.
        example_inputs: one sample on the same device: a tensor (1, C, H, W), or a tuple or dictionary of tensors.
        config: what to remove.
        setting: data, target and seed.
        scored: what `scored_units` gave for these, where it was asked before.

    Raises:
        InputError: the model or the config does not allow it; the layer or key is named.
    """
    setting = setting or Setting()
    dropped = _dropped(model, graph, config, setting)
    if dropped:
        graph, scored = replace(graph, groups=tuple(g for g in graph.groups if not inside(g.name, dropped))), None
    exact = Exactness(model, example_inputs)
    if dropped and (fault := exact.fault(graph, {}, dropped)) is not None:
        raise InputError(f"prune.blocks: the model does not run without {', '.join(dropped)} ({fault.reason})")
    while True:
        matched, scores = scored or scored_units(model, graph, config, setting)
        choice, plan = _chosen(model, matched, scores, config, setting, dropped)
        fault = exact.fault(matched, choice.kept, dropped, finished=plan)
        if fault is None:
            return with_counted_costs(model, example_inputs, exact, plan, matched)
        graph, scored = mended(graph, matched, choice, partial(exact.fault, matched, dropped=dropped), fault), None


def _chosen(
    model: nn.Module,
    scored: Graph,
    scores: Mapping[str, Tensor],
    config: StructureConfig,
    setting: Setting,
    dropped: tuple[str, ...],
) -> tuple[Choice, Plan]:
    """Choose widths by the scores of their units; return the choice and the plan of it."""
    counted = config.budget.counted if config.budget else "macs"
    cost = CostModel(scored, counted, dropped, setting.dense)
    for align in _aligns(config, setting):
        rules = WidthRules(align, config.min_width, config.min_fraction, full=setting.full)
        selector = Selector(scored, scores, cost, config.allocation, rules)
        if config.budget is None:
            share = config.ratio or 0.0
            choice = selector.removing(share if setting.target is None else 1 - setting.target)
            break
        try:
            choice = meet_budget(selector, config.budget, rules, setting.target)
            break
        except InputError:
            if align == 1 or config.align != "auto":
                raise
            say(f"prune.align auto: no widths in multiples of {align} meet {config.budget}; finer ones are tried")
    return choice, make_plan(model, scored, choice.kept, dropped=dropped, align=align)


def _aligns(config: StructureConfig, setting: Setting) -> tuple[int, ...]:
    """Return the multiples to try: for auto, halves of the target's as well, which may cost speed but meet budgets."""
    if config.align != "auto":
        return (config.align,)
    return tuple(setting.multiple >> shift for shift in range(setting.multiple.bit_length()))


def scored_units(model: nn.Module, graph: Graph, config: StructureConfig, setting: Setting) -> Scored:
    """Return what each unit is worth by the config's criterion, and the graph with its repeats matched by that."""
    data = ScoringData(
        graph=graph,
        batches=setting.batches,
        device=setting.device,
        generator=torch.Generator().manual_seed(setting.seed),
        counted=config.budget.counted if config.budget else "macs",
        task=setting.task,
    )
    scored, scores = score_units(model, graph, config.options, data)
    unreached = _unreached(scored, data.reached) if data.reached else set()
    if not unreached:
        return scored, scores
    say(f"no gradient reaches {', '.join(sorted(unreached))}, which stay whole: {config.criterion} cannot score them")
    left = left_whole(scored, unreached, "no gradient of the loss reaches their weights, as under torch.no_grad()")
    return left, {group.name: scores[group.name] for group in left.groups}


def _unreached(graph: Graph, reached: Collection[str]) -> set[str]:
    """Return the groups that have no weight in `reached`, nor are tied to one that has."""
    names = {group.name for group in graph.groups if not any(part.tensor in reached for part in matrices(group))}
    return {name for name in names if all(names.issuperset(tie) for tie in graph.ties if name in tie)}


def _dropped(model: nn.Module, graph: Graph, config: StructureConfig, setting: Setting) -> tuple[str, ...]:
    """Return the residual blocks to remove; on a step that is not the first they are gone already."""
    if not config.blocks or setting.full:
        return ()
    if setting.batches is None:
        raise InputError("prune.blocks: removing blocks needs data to rank them on; got data.name none; allowed 0")
    batches = (batch.to(setting.device, copy=True) for batch in setting.batches())
    return least_influential(block_influence(model, graph.blocks, batches, setting.task.forward), config.blocks)


def plan(
    model: nn.Module,
    example_inputs: Inputs,
    criterion: str = "dimap",
    budget: Mapping[str, float] | None = None,
    *,
    batches: Source | None = None,
    task: str | Mapping[str, Any] | TaskConfig | Task | None = None,
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
        batches: of (inputs, targets), for criteria that need data: a DataLoader, a list, or a function that gives them
            anew each time. All are used, unless `calibration_batches` says how many.
        task: what the model is for, as the section `task` of a recipe or its name; None: classification. Its loss is
            what criteria go by.
        multiple: what widths are multiples of where `align` is not given; None: what this machine runs fastest.
        options: further fields of `StructureConfig`.

    Raises:
        InputError: the model, a name or a value does not allow it.
    """
    _refuse_undone(options)
    config = validated(StructureConfig, {"kind": "structure", "criterion": criterion, "budget": budget, **options})
    if config.latencies:
        raise InputError(f"budget.{config.latencies[0].kind}: a recipe measures latency; allowed here: macs, params")
    steps = None if multiple is None else _multiple(multiple)
    if config.align == "auto" and steps is None:
        steps = width_multiple(LocalTarget()).value
    bound = task_of(task)
    misfit = config.unfit(bound) or config.options.unfit(bound)
    if misfit:
        raise InputError(f"task: {misfit}")
    model = unwrapped(model)
    for name, tensor in model.named_parameters():
        if is_lazy(tensor):
            raise InputError(
                f"model: {name!r} is of a lazy layer, which has no weights yet; call the model once before"
            )
        if tensor.is_meta:
            raise InputError(f"model: {name!r} is on the device meta, which holds no numbers; load the model's weights")
        if tensor.is_inference():
            raise InputError(f"model: {name!r} was made under torch.inference_mode; make the model outside of it")
    with as_imported():  # inference tensors have no history, by which widths are followed
        example_inputs = _example(example_inputs)
        device = str(next(tensors_in(example_inputs)).device)
        limit = config.calibration_batches if "calibration_batches" in options else None
        given = None if batches is None else batches_of(batches, model, bound, config.options, limit)
        setting = Setting(given, device, multiple=steps or 1, task=bound)
        try:
            graph = prunable(model, example_inputs, config)
            return plan_structure(model, graph, example_inputs, config, setting)
        except CompressError as error:
            replaced = [name or "(top)" for name, each in model.named_modules() if "forward" in vars(each)]
            if not replaced:
                raise
            raise InputError(
                f"{error}; the forward of {replaced[0]!r} was replaced by a function, which in a narrowed copy may "
                "still run the wide layers: write it as a method of the class"
            ) from error


def _multiple(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"multiple: got {value!r}; allowed whole numbers from 1, or None")
    return int(value)


_UNDONE = ("steps", "step_epochs", "compensate", "bn_batches", "sensitivity", "budgets")
"""Options of a recipe's stage that train, refit or measure, and are no part of a plan."""


def _refuse_undone(options: Mapping[str, Any]) -> None:
    """Raise InputError for what the stage of a recipe does besides planning; turned off it may be said."""
    for name in _UNDONE:
        default = StructureConfig.model_fields[name].default
        if options.get(name) and (name == "compensate" or options[name] != default):
            raise InputError(f"{name}: a plan removes units alone, a recipe's stage does the rest; leave it out")


def _example(inputs: Any) -> Inputs:
    """Return one sample of what the caller's model takes, of tensors that computations can be followed from."""
    if isinstance(inputs, Tensor):
        inputs = inputs[:1]
    if next(tensors_in(inputs), None) is None:
        what = f"got {type(inputs).__name__} without a tensor"
        raise InputError(f"example_inputs: {what}; allowed a tensor (N, ...), or a tuple or dictionary of such")
    if any(tensor.numel() == 0 for tensor in tensors_in(inputs)):
        sizes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))
        raise InputError(f"example_inputs: got tensors of {sizes}; at least one sample is needed")
    if any(tensor.is_meta for tensor in tensors_in(inputs)):
        raise InputError("example_inputs: got a tensor on the device meta, which holds no numbers; allowed cpu, cuda")
    return mapped(inputs, lambda each: each.clone() if each.is_inference() else each)  # type: ignore[no-any-return]
