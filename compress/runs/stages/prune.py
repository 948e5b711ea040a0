"""The section `prune`: weights, units or blocks are removed, at once or in steps with fine-tuning between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.bundle import Bundle
from compress.core.yaml_lines import Path_
from compress.export.exporters import ExportConfig
from compress.prune.kinds import PruneBase, PruneConfig, Surroundings, after_masks, check_pruning, prune_bundle
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import measured
from compress.runs.recipe import Recipe
from compress.runs.recipe_file import Finding
from compress.runs.stage import Act, Seconds, Stage, as_list, stages
from compress.runs.stages.finetune import Finetune
from evaluators.datasets import Data
from evaluators.latency.measure import LatencyConfig


@stages.register("prune")
class Prune(Stage[PruneBase]):
    """What the recipe says is removed, and what is left is evaluated."""

    order = 30
    Config = PruneConfig
    description = "what is removed; a list is done in order"
    several = True

    def acts(self, config: PruneBase | None, recipe: Recipe) -> Iterator[Act]:
        """Yield a pruning for each step, and the recipe's fine-tuning, for `step_epochs`, between two of them."""
        if config is None:
            return
        for step in range(1, config.number_of_steps + 1):
            yield Act(self, self.name, config, step)
            if step < config.number_of_steps:
                between = _between_steps(recipe.section("finetune"), config)
                yield Act(Finetune("finetune"), "finetune", between, step)

    def check(self, config: PruneBase, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that steps have no fine-tuning between them, and that this cannot follow on what comes before."""
        if config.number_of_steps > 1 and sections.get("finetune", ...) is None:
            yield (*key, "steps"), "several steps are fine-tuned between, so they need a finetune section"
        before = list(itertools.takewhile(lambda other: other is not config, as_list(sections["prune"])))
        if not config.keeps_weights and any(earlier.leaves_masks for earlier in before):
            yield (*key, "kind"), after_masks(config.kind)
        why = next((config.cannot_follow[each.kind] for each in before if each.kind in config.cannot_follow), None)
        if why is not None:
            yield (*key, "kind"), why

    def check_model(self, config: PruneBase, bundle: Bundle) -> None:
        """Raise InputError where `config` does not fit the model, such as globs that match nothing."""
        check_pruning(bundle, config)

    def run(self, artifact: Artifact, config: PruneBase, context: Context) -> Artifact:
        """Remove weights, units or blocks as the recipe says, and evaluate what is left."""
        first = next((record for record in reversed(context.earlier) if "dense_widths" in record), None)
        around = _surroundings(context.recipe, context.data, context.device, context.step, first, context.directory)
        bundle, details = prune_bundle(artifact.loaded, config, around)
        context.details |= details
        return Artifact(measured(bundle, context))

    def asks_target(self, config: PruneBase) -> bool:
        """Return whether budgets are of times, or widths such as the target likes."""
        return bool(getattr(config, "latencies", ())) or getattr(config, "align", None) == "auto"

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield about how long the pruning takes, with one evaluation.

        Raises:
            InputError: the settings do not suit the model, as far as that is known before a training.
        """
        configs = as_list(outlook.recipe.section(self.name))
        before = list(itertools.takewhile(lambda other: other is not act.config, configs))
        around = _surroundings(outlook.recipe, outlook.data, outlook.device)
        if act.step == 1 and outlook.recipe.section("train") is not None:
            if not before:
                act.config.check_times(outlook.bundle, around)
            elif all(each.keeps_weights for each in before):
                act.config.check_names(outlook.bundle)
        yield "prune", act.config.seconds(outlook.bundle, around, outlook.evaluation)

    def share_left(self, config: PruneBase) -> float:
        """Return the share of MACs that a budget of MACs leaves."""
        return config.share_left

    def foresee(self, bundle: Bundle, config: PruneBase, outlook: Outlook) -> Bundle:
        """Return the bundle pruned at once, and note what goes."""
        around = _surroundings(outlook.recipe, outlook.data, outlook.device)
        small, details = prune_bundle(bundle, config.at_once(), around)
        outlook.steps.append(details)
        return small


def _between_steps(finetune: Any, config: Any) -> Any:
    """Return the fine-tuning between two steps: the recipe's, for `step_epochs`."""
    assert finetune is not None  # the recipe's checks refuse steps without it
    warmup = None if finetune.warmup_epochs is None else min(finetune.warmup_epochs, config.step_epochs)
    return finetune.model_copy(update={"epochs": config.step_epochs, "warmup_epochs": warmup})


def _surroundings(
    recipe: Recipe,
    data: Data | None,
    device: str,
    step: int = 1,
    first: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> Surroundings:
    """Return what pruning uses besides the bundle; latency is measured as the recipe's sections say."""
    return Surroundings(
        data=data,
        device=device,
        seed=recipe.seed,
        latency=recipe.section("latency") or LatencyConfig(),
        export=recipe.section("export") or ExportConfig(),
        step=step,
        first=first,
        directory=directory,
    )
