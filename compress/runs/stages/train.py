"""The section `train`: the dense model, trained where the recipe says so, is what the others are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from compress.bundle import Bundle, open_model
from compress.core.errors import InputError
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.distill.finetune import named_after
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.measure import exported, measured
from compress.runs.recipe import Recipe
from compress.runs.recipe_file import Finding
from compress.runs.stage import Act, Seconds, Stage, all_stages, as_list, stages
from compress.runs.stages.export import export_seconds
from compress.training.config import FitConfig, TrainConfig, TrainerConfig
from compress.training.estimate import estimate_seconds
from compress.training.fit import fit
from evaluators.datasets import Data


def no_longer(config: TrainerConfig, finished: bool) -> str | None:
    """Return why a training of such settings may not get more epochs, if so."""
    if not config.open_ended:
        return (
            "the learning rate of every update hangs on the number of epochs "
            f"(schedule: {config.schedule}, warmup_epochs: {config.warmup_epochs}); it does not with schedule: "
            "constant or step and warmup_epochs given"
        )
    return "that training is over, and its optimiser's state is deleted" if finished else None


class Training(Stage[FitConfig]):
    """What the sections that train have in common."""

    may_grow = ("epochs",)

    def check(self, config: FitConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there is nothing to train on."""
        data = sections.get("data")
        if data is not None and data.absent:
            yield key, "needs images, but data.name is none; leave the section out or name a data set"

    def may_be_corrected(self, key: str, begun: bool, finished: Sequence[Act]) -> bool:
        """Return that all settings may before there is a checkpoint, but where a ranking has trained by them."""
        return not begun and not any(act.stage.name == "rank" for act in finished)

    def cannot_grow(self, key: str, was: int, config: FitConfig, finished: bool) -> str | None:
        """Return why a training may not get more epochs: its learning rates, or it is over."""
        return no_longer(config, finished)


class DenseConfig(TrainConfig):
    """How the dense model is trained; one that was found may learn from the one that was given."""

    has_teacher = True


@stages.register("train")
class Train(Training):
    """The dense model: trained, evaluated, and exported where another model follows."""

    order = 20
    Config = DenseConfig
    description = "training of the dense model, where it has no weights yet"
    changes_model = False
    makes_baseline = True

    def acts(self, config: FitConfig | None, recipe: Recipe) -> Iterator[Act]:
        """Yield one act, in every run: without the section, the model is only measured."""
        yield Act(self, "dense", config)

    def check(self, config: FitConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there is nothing to train on, or that no model is given beside the one that is trained."""
        yield from super().check(config, key, sections)
        finders = [stage for stage in all_stages() if stage.order < self.order and stage.finds_model]
        if config.needs_teacher and all(stage.name in sections for stage in finders) and "model" in sections:
            found = [(stage, each) for stage in finders for each in as_list(sections[stage.name])]
            if sections["model"] is None or not any(stage.finds(each) for stage, each in found):
                yield (
                    (*key, "step"),
                    "there is no other model yet to learn from: that takes a section model, and a search or supernet "
                    f"that finds what is trained; got {config.step_config.name}; allowed in finetune",
                )

    def run(self, artifact: Artifact, config: FitConfig | None, context: Context) -> Artifact:
        """Train the model where the recipe says so; evaluate it, and export the baseline if another model follows."""
        bundle = artifact.loaded
        if config is not None:
            teacher = given_model(bundle, context.recipe) if config.needs_teacher else None
            with named_after(self.name, config):
                train(bundle, config, context, "training", teacher)
        bundle = measured(bundle, context)
        export = context.recipe.section("export")
        if export is None or not context.compares:
            return Artifact(bundle)
        return Artifact(exported(bundle, export, context.baseline_onnx, context), context.baseline_onnx)

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield the time of training, of one evaluation and of the export."""
        name, seconds = "dense", 0.0
        if act.config is not None:
            assert outlook.data is not None
            teacher = given_model(outlook.bundle, outlook.recipe) if act.config.needs_teacher else None
            parts = outlook.bundle.model, outlook.data, act.config, outlook.device
            with named_after(self.name, act.config):
                name, seconds = "train", estimate_seconds(*parts, teacher=teacher)
        yield name, seconds + outlook.evaluation
        export = outlook.recipe.section("export")
        if export is not None and outlook.compares:
            yield "export", export_seconds(outlook.bundle, export)

    def foresee(self, bundle: Bundle, config: FitConfig, outlook: Outlook) -> Bundle:
        """Note what training may change of a plan."""
        outlook.notes.append("planned on the untrained model: after training, other units and weights may go")
        return bundle


def given_model(found: Bundle, recipe: Recipe) -> nn.Module:
    """Return the model of the recipe's section `model`, from which a found one learns.

    Raises InputError where it takes other inputs, which one batch cannot be for both.
    """
    given = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task).bundle
    if given.preprocessing != found.preprocessing:
        theirs, ours = given.preprocessing.to_dict(), found.preprocessing.to_dict()
        differ = [f"{key} {theirs[key]}, not {ours[key]}" for key in theirs if theirs[key] != ours.get(key)]
        raise InputError(
            f"train.step: the section model takes other inputs than the model that learns of it: {'; '.join(differ)}; "
            "say in data what both get"
        )
    return given.model


def train(
    bundle: Bundle,
    config: FitConfig,
    context: Context,
    label: str,
    teacher: nn.Module | None,
    data: Data | None = None,
) -> None:
    """Train the bundle's model in place, with its masks kept, on `data` or the run's, and note how it went."""
    assert context.data is not None  # the recipe's checks refuse training without data

    def tell(remark: str) -> None:
        say(remark)
        context.details["notes"] = [*context.details.get("notes", []), remark]

    result = fit(
        bundle.model,
        data or context.data,
        config,
        device=context.device,
        seed=context.recipe.seed,
        masks=bundle.masks,
        teacher=teacher,
        checkpoint_dir=context.directory / "checkpoint",
        resume=context.resume,
        log=context.log,
        label=label,
        tell=tell,
    )
    context.details |= {
        "epochs_run": result.epochs_run,
        "stopped_by": result.stopped_by,
        "best_epoch": result.best_epoch,
        "seconds_training": round(result.seconds, 3),
    }
