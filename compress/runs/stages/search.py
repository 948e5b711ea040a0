"""The section `search`: find architectures, keep the best, hand the winner on as the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from compress.core.errors import CompressError, InputError
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context
from compress.runs.recipe import Recipe
from compress.runs.recipe_file import Finding
from compress.runs.search_result import leave_behind, search_record, strategy_summary, winner, write_best
from compress.runs.stage import Stage, all_stages, stages
from evaluators.tasks import DEFAULT, TaskConfig
from search.config import SearchConfig
from search.job import SearchJob
from search.judge import unmeasured
from search.outcome import best, counts_by_state
from search.runner import Runner
from search.space import make_space
from search.study import spent_seconds
from search.tensorboard import logged, writer_class
from spaces.registry import space_class
from spaces.space import Space


@stages.register("search")
class Search(Stage[SearchConfig]):
    """Architecture search; its winner is the model of the stages that follow, unless it is a row of results."""

    order = 10
    Config = SearchConfig
    description = "architecture search; its winner is the model from then on"
    needs_model = False
    finds_model = True
    changes_model = False
    may_grow = ("trials",)

    def leaves_model(self, config: SearchConfig, recipe: Recipe) -> bool:
        """Return whether the winner can be built."""
        return self.finds(config)

    def finds(self, config: SearchConfig) -> bool:
        """Return whether what is found can be built."""
        return config.space.name != "table"

    def check(self, config: SearchConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what the task leaves open, a teacher that is not there, and sections that need more than a table."""
        task, wanted = sections.get("task", DEFAULT), space_class(config.space.name).for_task
        try:
            names = config.for_task(task).objective.metrics
        except InputError as error:
            for problem in error.problems:
                where, _, text = problem.partition(": ")
                yield tuple(where.split(".")), text
        else:
            metrics = config.evaluator.metrics_for(task, sections)
            if metrics is not None and task.metrics:  # else the task itself is told to be none for a search
                asked = dict.fromkeys((*names, *config.strategy.metrics))
                for text in unmeasured(asked, metrics, config.latency is not None):
                    yield (*key, "objective"), text
        if task is not None and wanted not in (None, task.name):
            yield ("task", "name"), f"networks of the space {config.space.name} are for {wanted}; got {task.name!r}"
        train = getattr(config.evaluator, "train", None)
        given = sections.get("model", ...) is not None or "model" in space_class(config.space.name).Config.model_fields
        if train is not None and train.needs_teacher and not given:
            step = train.step_config.name
            yield (
                (*key, "evaluator", "train", "step"),
                f"there is no other model yet to learn from: name one in model; got {step}",
            )
        if config.space.name != "table":
            return
        for stage in all_stages():
            if stage.order > self.order and sections.get(stage.name) is not None:
                yield (stage.name,), "a table (search.space) holds results, not networks; leave the section out"

    def for_task(self, config: SearchConfig, task: TaskConfig) -> SearchConfig:
        """Return the section with the metric that is searched for."""
        return config.for_task(task)

    def run(self, artifact: Artifact, config: SearchConfig, context: Context) -> Artifact:
        """Search, or go on searching in the run's study.

        Raises:
            InputError: the parts of the section do not fit together; nothing has been evaluated then.
            CompressError: an evaluation failed, or no architecture keeps the constraints.
        """
        if config.tensorboard:
            writer_class()
        recipe, place = context.recipe, context.directory
        data = None if recipe.data.absent else recipe.data
        run, model, task = context.run.resolve(), artifact.model, recipe.task
        job = SearchJob(config, data, model, recipe.name, recipe.seed, context.device, run, task, context.others)
        judge = job.judge()
        _say_plan(config, judge.space)
        runner = job.open(judge)
        _evaluate(job, runner, context)
        study = runner.study
        found = best(study, judge.space, config.keep)
        summary = strategy_summary(study)
        if summary:
            say(f"search: {summary}")
        record = search_record(config, judge.space, study, found) | {"summary": summary}
        context.details["search"] = record
        context.log({"event": "search", **counts_by_state(study), "best": found[0].values})
        leave_behind(study, context.run)
        weights = write_best(place, recipe, judge, found)
        model = winner(judge.space, record["best"][0], place)
        if model is not None and not weights and recipe.section("train") is None:
            say(
                "search: the winner has no trained weights; a section train, or an evaluator that keeps them, "
                "gives it some"
            )
        context.afterwards.append(judge.evaluator.tidy)
        return Artifact(model=model, figures=found[0].metrics)

    def restore(self, artifact: Artifact, config: SearchConfig, context: Context) -> Artifact:
        """Return the winner of a finished search, and its metrics."""
        record = context.earlier[-1]
        space = make_space(config.space, artifact.model)
        return Artifact(model=winner(space, record["search"]["best"][0], context.directory), figures=record["metrics"])

    def may_differ(self, key: str) -> bool:
        """Return whether `key` says where or how long is searched."""
        return key == "minutes" or (key.startswith("executor.") and not key.endswith(".storage"))

    def cannot_grow(self, key: str, was: int, config: SearchConfig, finished: bool) -> str | None:
        """Return why a finished search may not get more trials: weights that they need are gone."""
        if not finished or config.evaluator.resumable:
            return None
        return (
            "the search is finished, and the weights that its evaluator "
            f"({config.evaluator.kind}) starts later candidates from are deleted"
        )

    def goes_on(self, before: Mapping[str, Any], config: SearchConfig, record: Mapping[str, Any]) -> bool:
        """Return whether there are more trials now, or more time for those that are left."""
        counted = record["search"]["trials"]
        counts = ("complete", "broken", "stopped", "left_out")  # the same that `search.study.counts` counts
        short = sum(counted.get(name, 0) for name in counts) < config.trials
        was, now = before.get("minutes"), config.minutes
        longer = was is not None and (now is None or now > was)
        return config.trials > before.get("trials", config.trials) or (short and longer)


def _evaluate(job: SearchJob, runner: Runner, context: Context) -> None:
    """Take up what a killed worker left, and run trials until there are as many as asked for, or time is up."""
    config, study = job.config, runner.study
    revived = runner.revive()
    if revived:
        say(f"search: {revived} trial(s) of a killed worker taken up again")
    deadline = None
    if config.minutes is not None:
        deadline = time.monotonic() + max(0.0, 60 * config.minutes - spent_seconds(study))
    board = context.run / "tensorboard"
    with logged(study, config.objective.names, board) if config.tensorboard else nullcontext():
        try:
            job.run(runner, deadline)
        except InputError as error:
            if counts_by_state(study)["complete"]:
                raise CompressError(str(error)) from error  # what is evaluated stays, and --resume goes on with it
            raise


def _say_plan(config: SearchConfig, space: Space) -> None:
    names, strategy = ", ".join(config.objective.names), config.strategy.name
    say(f"search: {config.trials} of {space.count():,} architectures of {space.name} by {strategy} for {names}")
