"""The section `supernet`: the shared weights of a space are trained once; searches and rankings start from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.core.atomic import write_json, write_text
from compress.core.environment import settle_threads
from compress.core.errors import InputError
from compress.core.progress import say
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context
from compress.runs.recipe import Recipe
from compress.runs.recipe_file import Finding
from compress.runs.search_result import as_model
from compress.runs.stage import Stage, stages
from compress.runs.stages.train import no_longer
from evaluators.datasets.holdout import with_holdout
from search.space import SpaceConfig, blamed_on, fitted, make_space
from search.supernets.method import SupernetConfig, SupernetContext, seeded
from search.supernets.trained import FOLDER, TrainedSupernet, fingerprint
from spaces.registry import create
from spaces.space import Space
from spaces.supernet import Supernet


@stages.register("supernet")
class SupernetStage(Stage[SupernetConfig]):
    """Training of the shared weights of a space; they stay in the run's folder supernet/."""

    order = 5
    Config = SupernetConfig
    description = "training of a space's shared weights, by which searches and rankings judge architectures"
    needs_model = False
    changes_model = False
    finds_model = True
    may_grow = ("epochs",)

    def leaves_model(self, config: SupernetConfig, recipe: Recipe) -> bool:
        """Return whether the method finds one, or the recipe names one or searches for it."""
        return self.finds(config) or recipe.model is not None or recipe.section("search") is not None

    def finds(self, config: SupernetConfig) -> bool:
        """Return whether the method itself ends in an architecture."""
        return config.method.finds

    def check(self, config: SupernetConfig, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield that there are no data or no space, or that the search is in another space."""
        data, search = sections.get("data"), sections.get("search")
        if data is not None and data.absent:
            yield key, "needs images, but data.name is none; name a data set"
        if config.found_options and not config.method.finds:
            yield (*key, "found_options"), f"method {config.method.name} ends in no architecture; leave them out"
        if not config.method.finds and search is None and sections.get("model") is None:
            needy = [name for name, given in sections.items() if given is not None and _needs_model(name)]
            if needy and "search" in sections:
                what = f"{config.method.name} ends in no architecture, which section {needy[0]} needs"
                yield (*key, "method", "name"), f"{what}; add a section search, or leave {needy[0]} out"
        if config.space is None and search is None and "search" in sections:
            yield (*key, "space"), "missing; name the space (the recipe has no section search that names one)"
        own = search is not None and getattr(search.evaluator, "weights", "") is None
        if search is not None and own and config.space not in (None, search.space):
            yield (*key, "space"), "differs from search.space, which is judged by this supernet; leave it out"

    def cannot_grow(self, key: str, was: int, config: SupernetConfig, finished: bool) -> str | None:
        """Return why a training may not get more epochs: its method, its learning rates, or it is over."""
        if config.method.hangs_on_epochs:
            return f"what an update of method {config.method.name} does hangs on the number of epochs"
        return no_longer(config, finished)

    def run(self, artifact: Artifact, config: SupernetConfig, context: Context) -> Artifact:
        """Train, and keep the weights with what tells which samples were held out.

        Raises:
            InputError: the space has no supernet, or not what the method needs.
            Diverged: the loss is not finite (the last checkpoint is from before).
        """
        recipe = context.recipe
        key = "supernet.space" if config.space is not None else "search.space"
        space = make_space(_space_of(config, recipe), artifact.model, key)
        whole = fitted(space, recipe.data, recipe.task, recipe.seed)
        assert whole is not None  # the recipe's checks refuse a supernet without data
        data = with_holdout(whole, config.holdout, recipe.seed)
        with blamed_on("supernet.found_options"):
            larger = _with_options(space, config.found_options)
        with blamed_on("supernet.method"), seeded(recipe.seed):
            supernet = config.method.make(space, data.task)
        settle_threads(_macs(supernet) * getattr(recipe.data, "batch_size", 1))
        say(f"supernet: {space.count():,} architectures of {space.name} share their weights, by {config.method.name}")
        given = SupernetContext(
            config=config,
            data=data,
            device=context.device,
            seed=recipe.seed,
            directory=context.directory,
            resume=context.resume,
            log=context.log,
        )
        with blamed_on("supernet.method"):
            training = config.method.train(supernet, given)
        context.details |= {"supernet": training.details, "notes": training.notes}
        samples, labels = fingerprint(whole)
        TrainedSupernet(
            space=space,
            method=config.method,
            task=data.task,
            seed=recipe.seed,
            holdout=config.holdout,
            samples=samples,
            labels=labels,
            supernet=supernet,
            found=training.found,
            ratings=None if training.ratings is None else dict(training.ratings),
            details=training.details,
        ).save(context.run / FOLDER)
        for note in training.notes:
            say(f"supernet: {note}")
        if training.found is None:
            context.details["found"] = None
            return artifact
        arch = larger.check(training.found)
        found = context.details["found"] = larger.to_dict(arch)
        write_json(context.directory / "found.json", found)
        write_text(context.directory / "found.svg", larger.draw(arch))
        return Artifact(model=as_model(space.name, found))

    def restore(self, artifact: Artifact, config: SupernetConfig, context: Context) -> Artifact:
        """Return the architecture that a finished training has found, or what was there before."""
        found = context.earlier[-1].get("found")
        return artifact if found is None else Artifact(model=as_model(found["space"], found))


def _space_of(config: SupernetConfig, recipe: Recipe) -> SpaceConfig:
    if config.space is not None:
        return config.space
    found: SpaceConfig = recipe.section("search").space
    return found


def _with_options(space: Space, options: Mapping[str, Any]) -> Space:
    """Return the space of the same architectures with other options; InputError where they are not the same."""
    if not options:
        return space
    other = create(space.name, {**space.config.model_dump(mode="json", exclude_defaults=True), **options})
    if other.decisions != space.decisions:
        raise InputError(f"space {space.name} has other architectures with these; got {dict(options)}")
    other.default_task = space.default_task
    return other


def _needs_model(section: str) -> bool:
    return section in stages and stages.get(section).needs_model


def _macs(supernet: Supernet) -> int:
    """Return the MACs of one architecture, the first."""
    space = supernet.space
    return space.cost(next(iter(space)), supernet.task)["macs"]
