"""The section `rank`: how well the scores of a supernet rank networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.core.atomic import check_writable
from compress.core.environment import settle_threads
from compress.core.errors import InputError
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context
from compress.runs.recipe import Recipe
from compress.runs.recipe_file import Finding
from compress.runs.stage import Stage, all_stages, stages
from compress.training.config import TrainConfig
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.datasets import Data
from evaluators.tasks import DEFAULT, TaskConfig
from search.space import SpaceConfig, blamed_on, fitted, make_space
from search.supernets.alone import Alone
from search.supernets.evaluator import SupernetEvaluator, SupernetEvaluatorConfig
from search.supernets.rank_table import ArchitectureLog, Truth, read_truth
from search.supernets.ranking import RankConfig, Ranking, chosen, digest, score, score_name
from search.supernets.trained import FOLDER, TrainedSupernet
from spaces.architecture import Architecture
from spaces.space import Space
from spaces.zoo import ModelConfig

FILES = "rank"
"""The folder of a run that holds its scores and the networks trained alone; it outlives the stage's own."""
_KEPT = ("space", "weights")
"""Keys that are the same when a run is resumed; whatever else changes, nothing is scored or trained twice."""


@stages.register("rank")
class Rank(Stage[RankConfig]):
    """Scores networks with the weights that they inherit, and holds the scores against true values."""

    order = 7
    Config = RankConfig
    description = "how well the supernet ranks networks, against values that they reach when trained alone"
    needs_model = False
    finds_model = True
    changes_model = False
    may_grow = ("against",)

    def leaves_model(self, config: RankConfig, recipe: Recipe) -> bool:
        """Return whether a later section has something to do with a model; a ranking alone is the end of its run."""
        later = (stage for stage in all_stages() if stage.order > self.order)
        return any(recipe.section(stage.name) is not None for stage in later)

    def finds(self, config: RankConfig) -> bool:
        """Return False: networks are told apart, none is handed on."""
        return False

    def check(self, config: RankConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there are no data, no supernet, no settings of a training, or a table that does not fit."""
        data, supernet = sections.get("data"), sections.get("supernet")
        if data is not None and data.absent:
            yield key, "needs images, but data.name is none; name a data set"
        if config.weights is None and "supernet" in sections and supernet is None:
            told = "give the recipe a section supernet, or name the directory of a run that has trained one"
            yield (*key, "weights"), f"missing, and the recipe trains no supernet; {told}"
        if config.against and train_settings(config, sections) is None:
            yield (*key, "train"), "missing; nothing says how networks are trained alone (no section train)"
        task = sections.get("task", DEFAULT)
        names = (*(each.name for each in task.metrics), "params", "macs")
        if config.against and config.metric is not None and config.metric not in names:
            yield (*key, "metric"), f"no metric of a network; got {config.metric!r}; allowed {', '.join(names)}"
        if config.scores is not None and (problem := _unwritable(config.scores, config.truth)):
            yield (*key, "scores"), problem
        space = space_of(config, sections)
        if config.truth is not None and space is not None:
            yield from _wrong_table(config, key, space[1], sections)

    def run(self, artifact: Artifact, config: RankConfig, context: Context) -> Artifact:
        """Score networks, train some of them alone where that is asked for, and hold both against each other.

        Raises:
            InputError: there is no trained supernet, or it is of another space or other data; the table does not fit.
        """
        recipe, files = context.recipe, context.run / FILES
        space = _space(config, recipe, artifact.model)
        data = fitted(space, recipe.data, recipe.task, recipe.seed)
        assert data is not None  # the recipe's checks refuse a ranking without data
        truth = _truth(config, space, recipe.task)
        evaluator = _evaluator(config, space, data, context)
        name = score_name(evaluator, config.score)
        architectures = chosen(space, config, truth, recipe.seed)
        settle_threads(space.cost(architectures[0], data.task)["macs"] * getattr(recipe.data, "batch_size", 1))
        stamp = digest([evaluator.trained.digest, config.recalibrate])
        log = ArchitectureLog(files / f"scores-{stamp}.csv", space, evaluator.metrics)
        known = sum(arch in log.found for arch in architectures)
        before = f", {known} scored before" if known else ""
        say(f"rank: {len(architectures)} networks of {space.name} by {name}{before}")
        seconds = score(evaluator, architectures, log, recipe.seed)
        if config.against:
            truth = _trained_alone(config, space, data, architectures[: config.against], context)
        ranking = Ranking(space, architectures, log, name, evaluator.rater.direction(name, data), truth)
        ordered = ranking.best_first(architectures)
        log.write(files / "scores.csv", ordered)
        if config.scores is not None:
            log.write(Path(config.scores).expanduser(), ordered)
        record = ranking.record()
        context.details["rank"] = record | {"scored": len(architectures) - known, "seconds": round(seconds, 3)}
        context.details["in_report"] = {"rank": {key: record[key] for key in record if key not in ("best", "points")}}
        for note in record["notes"]:
            say(f"rank: {note}")
        ours = record["proxies"][0] if record["proxies"] else {}
        figures = {each: ours.get(each) for each in ("kendall", "spearman", "pearson")}
        context.log({"event": "rank", "architectures": len(architectures), **figures})
        return replace(artifact, figures={each: value for each, value in figures.items() if value is not None})

    def restore(self, artifact: Artifact, config: RankConfig, context: Context) -> Artifact:
        """Return what was there before, with the figures of a finished ranking."""
        return replace(artifact, figures=context.earlier[-1]["metrics"])

    def may_differ(self, key: str) -> bool:
        """Return whether `key` says what scores are held against, not how they come about."""
        return key.partition(".")[0] not in _KEPT and key not in self.may_grow

    def goes_on(self, before: Mapping[str, Any], config: RankConfig, record: Mapping[str, Any]) -> bool:
        """Return whether a finished ranking is asked for something else now."""
        now = config.model_dump(mode="json")
        return any(before.get(key) != now[key] for key in now)


def train_settings(config: RankConfig, sections: Mapping[str, Any]) -> TrainConfig | None:
    """Return how networks are trained alone: as the section itself says, as `train`, or as the search's candidates."""
    search = sections.get("search")
    found: TrainConfig | None = config.train or sections.get("train")
    return found or getattr(getattr(search, "evaluator", None), "train", None)


def space_of(config: RankConfig, sections: Mapping[str, Any]) -> tuple[str, SpaceConfig] | None:
    """Return the space that the recipe names, and its key: in the section itself, in `supernet`, or in `search`."""
    given = {"rank": config, **{name: sections.get(name) for name in ("supernet", "search")}}
    return next(((f"{name}.space", each.space) for name, each in given.items() if each and each.space), None)


def _space(config: RankConfig, recipe: Recipe, model: ModelConfig | None) -> Space:
    """Return the space of the supernet: as the recipe says, else the one that the trained supernet is of."""
    sections = {name: recipe.section(name) for name in ("supernet", "search")}
    given = space_of(config, sections)
    if given is not None:
        return make_space(given[1], model, given[0])
    assert config.weights is not None  # the recipe's checks ask for a section supernet otherwise
    return TrainedSupernet.load(Path(config.weights).expanduser(), "rank.weights").space


def _evaluator(config: RankConfig, space: Space, data: Data, context: Context) -> SupernetEvaluator:
    """Return what gives scores, the same as a search's."""
    supernet = context.run / FOLDER
    given = EvaluatorContext(space, data, context.device, context.recipe.seed, context.run / FILES, None, supernet)
    settings = SupernetEvaluatorConfig(weights=config.weights, recalibrate=config.recalibrate)
    try:
        return SupernetEvaluator(settings, given)
    except InputError as error:
        raise InputError(*(each.replace("search.evaluator", "rank", 1) for each in error.problems)) from error


def _truth(config: RankConfig, space: Space, task: TaskConfig) -> Truth | None:
    if config.truth is None:
        return None
    with blamed_on("rank.truth"):
        return read_truth(config.truth, space, task, config.metric, config.code_columns, config.direction)


def _trained_alone(
    config: RankConfig, space: Space, data: Data, architectures: Sequence[Architecture], context: Context
) -> Truth:
    recipe, files = context.recipe, context.run / FILES
    train = train_settings(config, {name: recipe.section(name) for name in ("train", "search")})
    assert train is not None  # the recipe's checks ask for one
    alone = Alone(space, data, train, context.device, recipe.seed, files / "alone")
    log = ArchitectureLog(files / f"alone-{digest(train.neutral())}.csv", space, alone.metrics)
    alone.train(architectures, log)
    log.write(files / "alone.csv", architectures)
    metric = config.metric or data.task.main_metric.name
    ways = {each.name: each.direction for each in data.task.metrics}
    return Truth(
        values={arch: log.found[arch][metric] for arch in architectures},
        metric=metric,
        direction=config.direction or ways.get(metric, "maximize"),
        source=f"{len(architectures)} networks trained alone, {train.epochs} epoch(s) each",
        rows=len(architectures),
    )


def _unwritable(scores: str, truth: str | None) -> str | None:
    """Return why no file can be written at `scores`, if so; the table `truth` that is read is not to be lost."""
    path = Path(scores).expanduser()
    if truth is not None and path.resolve() == Path(truth).expanduser().resolve():
        return f"{scores!r} is the table of true values, which would be lost; name another file"
    try:
        check_writable(path.absolute().parent, "")
    except InputError as error:
        return error.problems[0].strip()
    return f"{scores!r} is a folder; name a file" if path.is_dir() else None


def _wrong_table(config: RankConfig, key: Path_, space: SpaceConfig, sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what does not fit of the table of true values, before any time is spent on training."""
    try:
        made = make_space(space, sections.get("model"), "space")
        _truth(config, made, sections.get("task", DEFAULT))
    except InputError as error:
        for problem in error.problems:
            if not problem.startswith("space: "):  # told where the space is made
                yield (*key, "truth"), problem.removeprefix("rank.truth: ")
