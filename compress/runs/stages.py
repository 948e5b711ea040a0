"""The stages of a run: each takes a bundle, its section of the recipe and the context, and returns a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.bundle import Bundle
from compress.core.atomic import write_json
from compress.core.config import Config
from compress.core.environment import on_device
from compress.core.progress import say
from compress.distill.finetune import FinetuneConfig
from compress.export.exporters import ExportConfig
from compress.export.exporters import export as export_onnx
from compress.prune.bundles import PruneConfig, prune_bundle
from compress.prune.narrow import Surroundings
from compress.prune.structure_config import StructureConfig
from compress.runs.recipe import Recipe
from compress.training.config import TrainConfig
from compress.training.fit import fit
from evaluators.cost import count_macs, count_params, nonzero_macs
from evaluators.datasets import Data
from evaluators.latency.measure import LatencyConfig, interleave, record
from evaluators.tasks.accuracy import evaluate

METRICS = (
    "top1", "top5", "loss", "params", "nonzero_params", "macs", "nonzero_macs",
    "onnx_bytes", "onnx_parity_max_rel", "latency_ms",
)  # fmt: skip
MODEL_FILE = "model.onnx"


@dataclass
class Context:
    """What a stage may use besides its bundle and config.

    `directory` is the stage's own, `step` its number among several prunings of one section; `earlier` are the records
    of the stages before it; `details` becomes its details.json; `dense` loads the bundle of the first stage.
    """

    recipe: Recipe
    data: Data | None
    device: str
    directory: Path
    resume: bool
    log: Callable[[dict[str, Any]], None]
    dense: Callable[[], Bundle]
    dense_onnx: Path
    final_onnx: Path
    step: int
    earlier: Sequence[Mapping[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)


StageFunction = Callable[[Bundle, Any, Context], Bundle]


@dataclass(frozen=True)
class Stage:
    """One act of a run; its directory is stages/<number>-<name>."""

    number: int
    name: str
    function: StageFunction
    config: Config | None
    step: int = 1


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe asks for, in order; a pruning in steps has fine-tuning between them.

    A search comes before them, as number 1: see `compress.runs.search`. One over a table of results leaves no model for
    any stage.
    """
    if recipe.search is not None and recipe.search.space.name == "table":
        return []
    acts: list[tuple[str, StageFunction, Config | None, int]] = [("dense", dense, recipe.train, 1)]
    for config in recipe.prunings:
        steps = config.steps if isinstance(config, StructureConfig) else 1
        for step in range(1, steps + 1):
            acts.append(("prune", prune, config, step))
            if step < steps:
                acts.append(("finetune", finetune, _between_steps(recipe, config), step))
    for name, function, section in (
        ("finetune", finetune, recipe.finetune),
        ("export", export, recipe.export),
        ("latency", latency, recipe.latency),
    ):
        if section is not None:
            acts.append((name, function, section, 1))
    return [Stage(number, *act) for number, act in enumerate(acts, start=1 if recipe.search is None else 2)]


def _between_steps(recipe: Recipe, config: Any) -> FinetuneConfig:
    """Return the fine-tuning between two steps: the recipe's, for `step_epochs`."""
    assert recipe.finetune is not None  # the recipe's checks refuse steps without it
    warmup = min(recipe.finetune.warmup_epochs or 0, config.step_epochs)
    return recipe.finetune.model_copy(update={"epochs": config.step_epochs, "warmup_epochs": warmup})


def dense(bundle: Bundle, config: TrainConfig | None, context: Context) -> Bundle:
    """Train the model where the recipe says so; evaluate it, and export the baseline if another model follows."""
    if config is not None:
        _fit(bundle, config, context, "training", teacher=None)
    bundle = _measured(bundle, context)
    if context.recipe.export is not None and context.recipe.compares:
        bundle = _exported(bundle, context.recipe.export, context.dense_onnx, context)
    return bundle


def prune(bundle: Bundle, config: PruneConfig, context: Context) -> Bundle:
    """Remove weights, units or blocks as the recipe says, and evaluate what is left."""
    recipe = context.recipe
    around = Surroundings(
        data=context.data,
        device=context.device,
        seed=recipe.seed,
        latency=recipe.latency or LatencyConfig(),
        export=recipe.export or ExportConfig(),
        step=context.step,
        first=next((record for record in reversed(context.earlier) if "dense_widths" in record), None),
    )
    bundle, details = prune_bundle(bundle, config, around)
    context.details |= details
    return _measured(bundle, context)


def finetune(bundle: Bundle, config: FinetuneConfig, context: Context) -> Bundle:
    """Train the pruned model, with its masks kept, on the labels and on the dense model's logits if asked."""
    teacher = context.dense().model if config.distill is not None else None
    _fit(bundle, config, context, "fine-tuning", teacher)
    return _measured(bundle, context)


def export(bundle: Bundle, config: ExportConfig, context: Context) -> Bundle:
    """Write the winner as ONNX, checked against the module."""
    return _exported(bundle, config, context.final_onnx, context)


def latency(bundle: Bundle, config: LatencyConfig, context: Context) -> Bundle:
    """Time the baseline and the winner in turns on the target, one model by itself; figures and ratio are of one go."""
    if context.recipe.compares:
        both = interleave([context.dense_onnx, context.final_onnx], config)
        records = dict(zip(("baseline", "final"), both.records, strict=True))
        context.details |= {"baseline_latency_ms": records["baseline"].latency_ms, "latency_ratio": both.ratios[0]}
    else:
        records = {"final": record(context.final_onnx, config)}
    context.details["records"] = {name: each.model_dump(exclude={"samples"}) for name, each in records.items()}
    write_json(context.directory / "samples.json", {f"{name}_ms": each.samples for name, each in records.items()})
    return _with_metrics(bundle, latency_ms=records["final"].latency_ms)


def _fit(bundle: Bundle, config: TrainConfig, context: Context, label: str, teacher: nn.Module | None) -> None:
    """Train the bundle's model in place and note how it went."""
    assert context.data is not None  # the recipe's checks refuse training without data
    result = fit(
        bundle.model,
        context.data,
        config,
        device=context.device,
        seed=context.recipe.seed,
        masks=bundle.masks,
        teacher=teacher,
        checkpoint_dir=context.directory / "checkpoint",
        resume=context.resume,
        log=context.log,
        label=label,
    )
    context.details |= {
        "epochs_run": result.epochs_run,
        "stopped_by": result.stopped_by,
        "best_epoch": result.best_epoch,
        "seconds_training": round(result.seconds, 3),
    }


def _measured(bundle: Bundle, context: Context) -> Bundle:
    """Return the bundle with accuracy and cost measured; what of its ONNX file was known is no longer true."""
    inputs = bundle.example_inputs()
    params, nonzero_params = count_params(bundle.model, bundle.masks)
    macs = count_macs(bundle.model, inputs)
    accuracy: dict[str, Any] = {}
    if context.data is not None and context.data.test is not None:
        with on_device(bundle.model, context.device):
            accuracy = dict(evaluate(bundle.model, context.data.test, context.device))
    metrics = {
        **dict.fromkeys(METRICS),
        **accuracy,
        "params": params,
        "nonzero_params": nonzero_params,
        "macs": macs,
        "nonzero_macs": nonzero_macs(bundle.model, inputs, bundle.masks) if bundle.masks else macs,
    }
    return replace(bundle, metrics=metrics)


def _exported(bundle: Bundle, config: ExportConfig, path: Path, context: Context) -> Bundle:
    result = export_onnx(bundle.model, bundle.example_inputs(2), path, config)
    found = result.to_dict()
    context.details["export"] = {name: value for name, value in found.items() if name not in ("path", "bytes")}
    context.details["notes"] = list(result.notes)
    for note in result.notes:
        say(note)
    return _with_metrics(bundle, onnx_bytes=result.bytes, onnx_parity_max_rel=result.parity_max_rel)


def _with_metrics(bundle: Bundle, **metrics: Any) -> Bundle:
    return replace(bundle, metrics={**dict.fromkeys(METRICS), **bundle.metrics, **metrics})
