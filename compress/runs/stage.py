"""What a stage is: one section of a recipe and what it does to the model; and in which order stages act."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.core.registry import Registry, module_of
from compress.core.yaml_lines import Path_
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.recipe_file import Finding
from evaluators.tasks import TaskConfig

if TYPE_CHECKING:
    from compress.runs.recipe import Recipe

MODEL_FILE = "model.onnx"

Seconds = Iterator[tuple[str, float]]
C = TypeVar("C")


@dataclass(frozen=True)
class Act:
    """One thing that a run does; its directory is stages/<number>-<name>.

    `step` counts the acts of one config that does its work in steps.
    """

    stage: Stage[Any]
    name: str
    config: Any
    step: int = 1
    number: int = 0

    @property
    def folder(self) -> str:
        """The name of its directory, in stages/ of the run."""
        return f"{self.number:02d}-{self.name}"


class Stage(ABC, Generic[C]):
    """A section of a recipe: what is written there, and what that does to the model.

    A subclass is registered under the section's name and needs `order`, `Config`, `description` and `run`; the rest is
    for stages that are checked against other sections, take long, or have more to say.
    """

    order: ClassVar[int]
    """Place among the stages: supernet 5, rank 7, search 10, train 20, prune 30, ladder 35, finetune 40,
    distill 45, sort 47, export 50, quantize 55, references 58, latency 60."""
    Config: ClassVar[Any]
    """What the section holds: a config class, or a union of them with a discriminator."""
    description: ClassVar[str]
    """One line about the section."""
    several: ClassVar[bool] = False
    """Whether the section may be a list, which is done in order."""
    needs_model: ClassVar[bool] = True
    """Whether the artifact has to hold a bundle."""
    finds_model: ClassVar[bool] = False
    """Whether a recipe with this section may do without a section `model`."""
    changes_model: ClassVar[bool] = True
    """Whether it makes another model, with which the baseline is then compared."""
    makes_baseline: ClassVar[bool] = False
    """Whether what it leaves is the model that the others are compared with."""
    may_grow: ClassVar[tuple[str, ...]] = ()
    """Keys of the section whose whole number may be larger in the recipe of a resumed run; see `cannot_grow`."""

    def __init__(self, name: str) -> None:
        """Make the stage of the section `name`."""
        self.name = name

    @property
    def where(self) -> str:
        """The stage as messages name it, with the module that it comes from."""
        return f"the stage {self.name!r} ({module_of(type(self))})"

    @abstractmethod
    def run(self, artifact: Artifact, config: C, context: Context) -> Artifact:
        """Return what becomes of the artifact; `context.details` is what the report knows of it.

        Raises InputError where the user has to mend something, CompressError where it went wrong.
        """

    def for_task(self, config: C, task: TaskConfig) -> C:
        """Return `config` with what it leaves to the recipe's task filled in; InputError where that cannot be."""
        return config

    def acts(self, config: C | None, recipe: Recipe) -> Iterator[Act]:
        """Yield what a run does for `config`, None where the recipe has no such section."""
        if config is not None:
            yield Act(self, self.name, config)

    def leaves_model(self, config: C, recipe: Recipe) -> bool:
        """Return whether there is a model afterwards; if not, no later stage acts that needs one."""
        return True

    def finds(self, config: C) -> bool:
        """Return whether there is another model afterwards than the one of the recipe's section `model`, if any."""
        return self.finds_model

    def check(self, config: C, key: Path_, sections: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with `config`, which stands at `key`, beside the other sections.

        Only sections that are right by themselves are there; one that the recipe leaves out is None.
        """
        return iter(())

    def check_model(self, config: C, bundle: Bundle) -> None:
        """Raise InputError where `config` cannot be done to this model; asked before time is spent on training it."""

    def try_out(self, config: C, bundle: Bundle) -> None:
        """Raise InputError where `config` cannot be done to models of this structure, whatever their weights.

        It may take as long as `run`, and is asked before a training of minutes alone.
        """

    def reach(self, config: C) -> None:
        """Raise where what it needs besides model and data, such as a target, is not there; asked before a run."""

    def restore(self, artifact: Artifact, config: C, context: Context) -> Artifact:
        """Return what `run` has left in the stage's directory, where it was finished by another process."""
        onnx = context.directory / MODEL_FILE
        before = None if self.changes_model else artifact.onnx
        return Artifact(Bundle.load(context.directory), onnx if onnx.is_file() else before)

    def estimate(self, act: Act, outlook: Outlook) -> Seconds:
        """Yield (what, seconds) of the parts of `act` that take time."""
        return iter(())

    def share_left(self, config: C) -> float:
        """Return the share of MACs that is left afterwards, as far as the config says."""
        return 1.0

    def foresee(self, bundle: Bundle, config: C, outlook: Outlook) -> Bundle:
        """Return the bundle as a dry run shows it: with this stage done, as far as that needs no training."""
        return bundle

    def may_differ(self, key: str) -> bool:
        """Return whether `key` of the section says where or how long, not what: a resumed run may have another."""
        return False

    def may_be_corrected(self, key: str, begun: bool, finished: Sequence[Act]) -> bool:
        """Return whether `key` of the section may be another in a resumed run, in which no act of it is finished.

        Not where one of the acts that are `finished` has gone by it, nor where what it has left since it has `begun`
        hangs on it.
        """
        return False

    def asks_target(self, config: C) -> bool:
        """Return whether what was done for `config` hangs on the target of the section `latency`."""
        return False

    def cannot_grow(self, key: str, was: int, config: C, finished: bool) -> str | None:
        """Return why the number at `key`, one of `may_grow`, may not become larger, if so."""
        return None

    def goes_on(self, before: Mapping[str, Any], config: C, record: Mapping[str, Any]) -> bool:
        """Return whether `config` asks a finished stage for more than the section `before` and `record` have."""
        return False


stages: Registry[type[Stage[Any]]] = Registry("stage", home="compress.runs.stages", base=Stage)


def all_stages() -> list[Stage[Any]]:
    """Return every stage there is, in the order in which they act.

    Raises InputError for a plug-in's stage that lacks what every stage has.
    """
    return sorted(map(_made, stages), key=lambda stage: (stage.order, stage.name))


def _made(name: str) -> Stage[Any]:
    kind = stages.get(name)
    parts = ("order", "Config", "description", "run")
    missing = [part for part in parts if not hasattr(kind, part) or part in kind.__abstractmethods__]
    if missing:
        raise InputError(f"the stage {name!r} ({module_of(kind)}) has no {', '.join(missing)}")
    return kind(name)


def as_list(section: Any) -> list[Any]:
    """Return the configs of a section: none where it is left out, several where it is a list."""
    if section is None:
        return []
    return list(section) if isinstance(section, list) else [section]


def sections_of(recipe: Recipe) -> Iterator[tuple[Stage[Any], Any]]:
    """Yield each config of the recipe with its stage, in the order in which they act."""
    for stage in all_stages():
        for config in as_list(recipe.section(stage.name)):
            yield stage, config


def acts_of(recipe: Recipe) -> list[Act]:
    """Return what a run of `recipe` does, in order and numbered from 1."""
    found: list[Act] = []
    there = True
    for stage in all_stages():
        if stage.needs_model and not there:
            continue
        given = as_list(recipe.section(stage.name))
        for config in given or [None]:
            found += stage.acts(config, recipe)
        there = there and all(stage.leaves_model(config, recipe) for config in given)
    return [replace(act, number=number) for number, act in enumerate(found, start=1)]


def compares(acts: Sequence[Act]) -> bool:
    """Return whether an act makes another model of the baseline, so that there are two to compare."""
    since = dropwhile(lambda act: not act.stage.makes_baseline, acts)
    return any(act.stage.changes_model for act in since)
