"""Structure pruning of a bundle: the plan with the run's data and target, its steps, and the smaller bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.tensors import moved
from compress.criteria.unit_criterion import Batches
from compress.graph.apply import apply
from compress.graph.graph import Graph
from compress.graph.plan import Plan
from compress.prune.allocation.front import written
from compress.prune.allocation.meet import Met
from compress.prune.budget import BudgetConfig
from compress.prune.by_latency import plans_by_latency
from compress.prune.details import plan_details
from compress.prune.kinds import Details, Surroundings
from compress.prune.repair import renew_norms, repaired
from compress.prune.sensitivity import scan
from compress.prune.structure import Scored, Setting, plan_structure, prunable, scored_units
from compress.prune.structure_config import StructureConfig
from compress.transforms.narrow import Narrow
from evaluators.datasets import Data
from evaluators.latency.width_multiple import width_multiple
from evaluators.tasks.evaluation import evaluate

LEAST_STEP = 0.98
"""Share of the latency that a step leaves at most, where an earlier one went further than it was to."""


def narrowed(bundle: Bundle, config: StructureConfig, around: Surroundings) -> tuple[Bundle, Details]:
    """Return the bundle without the units that `config` removes, and the details; with several steps, after one."""
    with on_device(bundle.model, around.device):
        on = moved(bundle.example_inputs(), around.device)
        graph = prunable(bundle.model, on, config, bundle.known)
        first = _first_step(graph, config) if around.step == 1 else _noted(around.first or {})
        setting = Setting(
            batches=first_batches(around.data, config.calibration_batches),
            device=around.device,
            seed=around.seed,
            multiple=width_multiple(around.latency.target).value if config.align == "auto" else 1,
            target=_target(config, around.step),
            dense=first.get("dense_cost"),
            full=first.get("dense_widths", {}) if around.step > 1 else {},
            task=bundle.task if around.data is None else around.data.task,
        )
        rows, scored = _sensitivity(bundle.model, graph, config, setting, around) if config.sensitivity else ({}, None)
        if config.latencies:
            budgets = _budgets(config, around.step, first.get("latency_left", 1.0))
            fitted = plans_by_latency(bundle, config, budgets, setting, around)
            first = _with_latency(first, config, fitted[-1][0])
        else:
            plan = plan_structure(bundle.model, graph, on, config, setting, scored)
    cut = partial(_cut, bundle, config, around)
    small, details = written(fitted, cut, config, around) if config.latencies else cut(plan)
    if "latency_left" in first:
        note = f"{first['latency_left']:.3f} of the latency before the first of {config.steps} steps is left"
        details["notes"] = [*details["notes"], note]
    return small, details | first | rows


def _cut(bundle: Bundle, config: StructureConfig, around: Surroundings, plan: Plan) -> tuple[Bundle, Details]:
    """Return the bundle after `plan`, compensated or with its batch norms estimated anew, and its details."""
    small, details = apply(plan, bundle.model).eval(), plan_details(plan)
    if config.compensate and around.data is not None:
        held = bundle.masks or ()
        small, repair = repaired(small, bundle.model, plan, around, bn_batches=config.bn_batches, held=held)
        details |= {**repair, "notes": [*details["notes"], *repair.get("notes", ())]}
    else:
        renew_norms(small, around, config.bn_batches)
    return shrunk(bundle, plan, small), details


def _first_step(graph: Graph, config: StructureConfig) -> Details:
    """Return cost and widths of the model before the first of several steps; nothing where there is one."""
    if config.steps == 1:
        return {}
    counted = config.budget.counted if config.budget is not None else "macs"
    return {"dense_cost": getattr(graph, counted)(), "dense_widths": graph.widths()}


def _noted(record: Mapping[str, Any]) -> Details:
    return {key: record[key] for key in ("dense_cost", "dense_widths", "latency_left") if key in record}


def _with_latency(first: Details, config: StructureConfig, met: Met) -> Details:
    """Return the details with the share of the latency before the first of several steps that was measured now."""
    return first if config.steps == 1 else first | {"latency_left": first.get("latency_left", 1.0) * met.timing.share}


def _sensitivity(
    model: nn.Module, graph: Graph, config: StructureConfig, setting: Setting, around: Surroundings
) -> tuple[Details, Scored]:
    """Return what the main metric loses when each group alone is narrowed, before any fine-tuning, and the scores."""
    if around.data is None or around.data.test is None:
        raise InputError("prune.sensitivity: the scan needs test images; got data.name none; allowed false")
    test, task = around.data.test, around.data.task
    scored = scored_units(model, graph, config, setting)
    main = task.main_metric

    def judge(module: nn.Module) -> float:
        return main.of(evaluate(module, test, task, around.device))

    rows = scan(model, *scored, judge, larger_is_better=main.direction == "maximize")
    return {"sensitivity": [asdict(row) for row in rows]}, scored


def _target(config: StructureConfig, step: int) -> float | None:
    """Return the fraction to keep after `step`: the way to the budget in equal parts; None where there is one step."""
    if config.steps == 1:
        return None
    final = config.budget.target if config.budget is not None else 1 - float(config.ratio or 0)
    return 1 - (1 - final) * step / config.steps


def _budgets(config: StructureConfig, step: int, left: float) -> Sequence[BudgetConfig]:
    """Return the latencies to reach; on the way there in steps, this step's share of what the model takes now.

    What it takes now, `left` of the model before the first step, was measured, so that errors do not add up.
    """
    target = _target(config, step)
    return config.latencies if target is None else [BudgetConfig(latency=min(target / left, LEAST_STEP))]


def first_batches(data: Data | None, count: int) -> Batches | None:
    """Return a function that yields the first `count` training batches, the same each time."""
    if data is None or data.train is None:
        return None
    train = data.train
    return lambda: islice(train.epoch(0), count)


def shrunk(bundle: Bundle, plan: Plan, small: nn.Module) -> Bundle:
    """Return the bundle after `plan`, whose module is `small`; masks are narrowed as their weights were."""
    masks = bundle.masks
    if masks is not None:
        left = {name for name, _ in small.named_parameters()}
        masks = {name: _narrowed_mask(mask, plan, name) for name, mask in masks.items() if name in left}
    return replace(bundle, masks=masks).transformed(Narrow(plan=plan), small)


def _narrowed_mask(mask: Tensor, plan: Plan, name: str) -> Tensor:
    for dim, indices in plan.kept.get(name, {}).items():
        mask = mask.index_select(dim, torch.tensor(indices, dtype=torch.long))
    return mask
