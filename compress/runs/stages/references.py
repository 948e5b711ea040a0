"""The section `references`: networks that were designed by hand, trained and measured beside what the recipe finds."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from compress.bundle import Opened, open_model
from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.directory import finish_stage, finished_stage
from compress.runs.measure import exported, measured
from compress.runs.recipe import Recipe, check_model
from compress.runs.recipe_file import Finding
from compress.runs.stage import MODEL_FILE, Act, Seconds, Stage, stages
from compress.runs.stages.export import export_seconds
from compress.runs.stages.train import given_model, train
from compress.training.estimate import estimate_seconds
from spaces.zoo import ModelConfig, ModelSection


class ReferencesConfig(Config):
    """Which networks the result is shown beside."""

    networks: list[ModelSection] = Field(
        min_length=1,
        description="each a section, or a name alone, as `model` is; without weights, trained like `train`",
    )


@stages.register("references")
class References(Stage[ReferencesConfig]):
    """Given networks, trained as the recipe trains its own, evaluated, exported, and timed by the section `latency`.

    The model of the run passes unchanged; each network is a bundle in the stage's folder.
    """

    order = 58
    Config = ReferencesConfig
    description = "networks designed by hand, trained and measured beside what the recipe finds"
    changes_model = False

    def check(self, config: ReferencesConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with a network's names, and that there is no way for it to get weights."""
        data = sections.get("data")
        for index, network in enumerate(config.networks):
            where = (*key, "networks", index)
            yield from check_model(network, where)
            if network.has_weights:
                continue
            if data is not None and data.absent:
                yield where, f"{network.name} has no weights, and data.name is none; leave the section out"
            elif sections.get("train", ...) is None:
                yield where, f"{network.name} has no weights; it needs a section train, or a checkpoint"

    def run(self, artifact: Artifact, config: ReferencesConfig, context: Context) -> Artifact:
        """Train and measure each network; one that is finished is not done again. The report has their metrics.

        Raises InputError where one does not fit the data, CompressError where its training or export failed.
        """
        found = []
        for index, network in enumerate(config.networks):
            place = context.directory / f"{index + 1}-{re.sub(r'[^A-Za-z0-9._-]+', '_', network.name)}"
            record = finished_stage(place)
            if record is None:
                say(f"references: {network.name}")
                record = _measure(index, network, replace(context, directory=place, details={}))
            file = place / MODEL_FILE
            onnx = str(file.relative_to(context.run)) if file.is_file() else None
            found.append(
                {"name": network.name, "seconds": record["seconds"], "metrics": record["metrics"], "onnx": onnx}
            )
        context.details["beside"] = found
        return artifact

    def asks_target(self, config: ReferencesConfig) -> bool:
        """Return that it does: the networks are timed there."""
        return True

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of training, evaluating and exporting all of them."""
        settings, export = outlook.recipe.section("train"), outlook.recipe.section("export")
        seconds = 0.0
        for index, network in enumerate(act.config.networks):
            opened = _opened(index, network, outlook.recipe)
            bundle, data = opened.bundle, opened.data
            if not network.has_weights:
                assert data is not None  # the recipe's checks refuse a network without weights then
                teacher = given_model(bundle, outlook.recipe) if settings.needs_teacher else None
                seconds += estimate_seconds(bundle.model, data, settings, outlook.device, teacher=teacher)
            seconds += replace(outlook, bundle=bundle, data=data).evaluation
            seconds += 0.0 if export is None else export_seconds(bundle, export)
        yield self.name, seconds
        latency = outlook.recipe.section("latency")
        if latency is not None:
            yield f"timing {self.name}", len(act.config.networks) * (latency.seconds + latency.max_seconds / 2)


def _measure(index: int, network: ModelConfig, context: Context) -> dict[str, Any]:
    """Train a network where it has no weights, evaluate and export it into `context.directory`; return its record."""
    started, recipe = time.monotonic(), context.recipe
    opened = _opened(index, network, recipe)
    context = replace(context, data=opened.data, log=_named(network.name, context.log))
    bundle = opened.bundle
    context.directory.mkdir(parents=True, exist_ok=True)
    if not network.has_weights:
        settings = recipe.section("train")
        teacher = given_model(bundle, recipe) if settings.needs_teacher else None
        train(bundle, settings, context, f"training {network.name}", teacher)
    bundle = measured(bundle, context)
    export = recipe.section("export")
    if export is not None:
        bundle = exported(bundle, export, context.directory / MODEL_FILE, context)
    bundle.save(context.directory / "bundle")
    finish_stage(context.directory, network.name, time.monotonic() - started, context.details, bundle.metrics)
    shutil.rmtree(context.directory / "checkpoint", ignore_errors=True)
    return {"name": network.name, "seconds": time.monotonic() - started, "metrics": bundle.metrics}


def _named(name: str, log: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return a log whose events tell the network, and are no epochs of the run's own model."""
    return lambda event: log({**event, "event": f"reference_{event['event']}", "network": name})


def _opened(index: int, network: ModelConfig, recipe: Recipe) -> Opened:
    """Return the network with the recipe's data fitted to it; InputError, naming it, where they do not fit."""
    try:
        return open_model(network, recipe.data, recipe.seed, recipe.task)
    except InputError as error:
        key = f"references.networks.{index}"
        raise InputError(*(f"{key}: {network.name}: {problem}" for problem in error.problems)) from error
