"""A search space: a network family defined once, to be searched, built, weight-shared, cut out and drawn."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from compress.core.meta import without_storage
from evaluators.cost import count_macs, count_params
from evaluators.tasks import DEFAULT, Task
from spaces.architecture import Architecture, Choice, Decision, either
from spaces.drawing import draw_chain
from spaces.layers import Layer
from spaces.tree import State, Tree

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import CategoricalDistribution

    from spaces.supernet import Supernet


def task_of(num_outputs: int = 1000, in_chans: int = 3, img_size: int = 224) -> Task:
    """Return what published networks are built for: a head of `num_outputs`, square images."""
    return DEFAULT.bind(num_outputs, (in_chans, img_size, img_size))


@dataclass(frozen=True)
class Preset:
    """A named point: options of the space, and (None: the space alone) an architecture as choices or published code."""

    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    code: Any = None


KEPT_FORMS = 4096
"""Canonical forms that a space remembers."""

Fill = Callable[[Decision], Choice]
"""Gives a decision a choice."""


def drawn_by(generator: random.Random) -> Fill:
    """Return what draws a choice for a decision, each as likely."""
    return lambda decision: generator.choice(decision.choices)


def _first(decision: Decision) -> Choice:
    return decision.choices[0]


class Space(ABC):
    """Named categorical decisions, and the networks that they describe.

    A space is one file that registers a subclass with `@spaces.register(name)` of `spaces.registry`. The subclass has a
    `Config` with its options and implements `_decisions`, `_build` and, where it can, `_layers`, `_supernet`,
    `from_code`, `to_code`, `_canonical`.
    The public methods check architectures and fill in the task; the underscored ones get checked ones.
    """

    Config: ClassVar[type[Config]]
    """Options of the space."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Named architectures and option sets."""
    name: str = ""
    """As registered; set by `spaces.registry.create`."""
    default_task: Task = task_of()
    """What networks are built for where the caller does not say."""
    for_task: ClassVar[str | None] = None
    """The one task that networks are for; None: any whose models give one vector for an image."""
    candidates: Sequence[Architecture] | None = None
    """All architectures, where they are a list rather than all combinations of choices (a table with missing rows)."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.decisions: tuple[Decision, ...] = tuple(self._decisions())
        self._named = {decision.name: decision for decision in self.decisions}
        self._canonical_forms: dict[Architecture, Architecture] = {}

    # What a subclass writes.

    @abstractmethod
    def _decisions(self) -> Sequence[Decision]:
        """Return the decisions in the order in which they are taken; conditions look back only."""

    @abstractmethod
    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        """Return a plain module: images (N, C, H, W) to outputs (N, num_outputs)."""

    def _layers(self, arch: Architecture, task: Task) -> list[Layer] | None:
        """Return the rows that make up the whole network, computed without building; None where that cannot be."""
        return None

    def _supernet(self, task: Task) -> Supernet:
        raise InputError(f"space {self.name} has no supernet")

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a published code (a list or string); a subclass that has such codes overrides this."""
        raise InputError(f"an architecture of space {self.name} is a mapping of decisions to choices; got {code!r}")

    def to_code(self, arch: Architecture) -> Any:
        """Return the published code of `arch`; the choices themselves for a space without one."""
        return dict(arch)

    def _canonical(self, arch: Architecture) -> Architecture:
        """Return what `canonical` does; a space where several encodings build the same network overrides this."""
        return arch

    def input_size(self, arch: Architecture, img_size: int | None = None) -> int:
        """Return the image side in pixels that `arch` works on; spaces that search the resolution override this."""
        return img_size or self.default_task.img_size

    # Which architectures there are.

    def canonical(self, arch: Mapping[str, Choice]) -> Architecture:
        """Return the one encoding that all encodings of the same network share (up to the order of a sum).

        It is kept for the architectures of late: the parts of a search each ask for it.
        """
        key = arch if isinstance(arch, Architecture) else self.check(arch)
        found = self._canonical_forms.get(key)
        if found is None:
            if len(self._canonical_forms) >= KEPT_FORMS:
                self._canonical_forms.clear()
            found = self._canonical_forms[key] = self.check(self._canonical(self.check(key)))
        return found

    @cached_property
    def conditional(self) -> bool:
        """Whether choices of all decisions together can be something else than an architecture."""
        return any(decision.when is not None for decision in self.decisions)

    @cached_property
    def tree(self) -> Tree:
        """The tree of legal architectures; made on first use."""
        return Tree(self.decisions)

    def count(self) -> int:
        """Return the exact number of legal architectures."""
        return self.tree.count()

    def __iter__(self) -> Iterator[Architecture]:
        """Enumerate all legal architectures, in lexicographic order of their choices."""
        return map(Architecture, self.tree)

    def sample(self, generator: random.Random) -> Architecture:
        """Draw one of all legal architectures, each with the same probability."""
        return self._remember(Architecture(self.tree.unrank(generator.randrange(self.tree.count()))))

    def check(self, choices: Mapping[str, Any], drop_untaken: bool = False) -> Architecture:
        """Return `choices` as a legal architecture.

        Args:
            choices: one per decision that is taken.
            drop_untaken: ignore choices of decisions that are not taken, as samplers over full products give them.

        Raises:
            InputError: with every problem, naming the decision and what is allowed.
        """
        if isinstance(choices, Architecture) and id(choices) in self._checked:
            return choices
        legal = self._legal(choices, drop_untaken)
        if legal is not None:
            return self._remember(Architecture(legal))
        problems = [self._unknown(name) for name in choices if name not in self._named]
        taken: dict[str, Choice] = {}
        for index, (decision, active) in enumerate(self._walk(taken)):
            wrong = self._wrong(decision, choices) if active else []
            problems += wrong
            if active and not wrong:
                taken[decision.name] = decision.choices[decision.index(choices[decision.name])]
            elif not active and decision.name in choices and not drop_untaken:
                assert decision.when is not None
                got = choices[decision.name]
                problems.append(f"{decision.name}: got {got!r}; this decision is taken only {decision.when.text}")
            if wrong and decision.name in self.tree.read:  # which later decisions are taken hangs on this one
                for later in self.decisions[index + 1 :]:
                    if later.when is None or (later.name in choices and not drop_untaken):
                        problems += self._wrong(later, choices)
                break
        raise InputError(*_brief(problems))

    def _legal(self, choices: Mapping[str, Any], drop_untaken: bool) -> dict[str, Choice] | None:
        """Return the choices that are taken, or None where something is wrong with them."""
        taken: dict[str, Choice] = {}
        left_out = 0
        state: State = ()
        for decision, nodes in zip(self.decisions, self.tree.levels, strict=True):
            active, following = nodes[state].active, nodes[state].following
            place = 0
            if active:
                place = decision.index(choices[decision.name]) if decision.name in choices else -1
                if place < 0:
                    return None
                taken[decision.name] = decision.choices[place]
            elif decision.name in choices:
                left_out += 1
            state = following[place]
        known = len(taken) + left_out == len(choices)
        return taken if known and (drop_untaken or not left_out) else None

    def parse(self, value: Any) -> Architecture:
        """Return the architecture of a mapping, of a published code, or of a file written by `to_dict`."""
        if isinstance(value, Mapping) and "choices" in value and "choices" not in self._named:
            value = value["choices"]
        return self.check(value if isinstance(value, Mapping) else self.from_code(value))

    def to_dict(self, arch: Mapping[str, Choice]) -> dict[str, Any]:
        """Return `arch` with the name and the options of its space, ready for JSON."""
        options = self.config.model_dump(mode="json", exclude_defaults=True)
        return {"space": self.name, "options": options, "choices": dict(self.check(arch))}

    # Steps between architectures.

    def mutate(self, arch: Architecture, generator: random.Random) -> Architecture:
        """Return `arch` with one decision changed; decisions that it newly takes get random choices."""
        free = [name for name in arch if len(self._named[name].choices) > 1]
        if not free:
            return arch
        name = generator.choice(free)
        others = [choice for choice in self._named[name].choices if choice != arch[name]]
        return self._completed({**arch, name: generator.choice(others)}, drawn_by(generator))

    def neighbours(self, arch: Architecture, generator: random.Random | None = None) -> Iterator[Architecture]:
        """Yield every architecture with one decision changed.

        Decisions that are newly taken get random choices; without a generator their first one.
        """
        fill = _first if generator is None else drawn_by(generator)
        for name, choice in arch.items():
            for other in self._named[name].choices:
                if other != choice:
                    yield self._completed({**arch, name: other}, fill)

    def complete(self, choices: Mapping[str, Any], fill: Fill) -> Architecture:
        """Return the legal architecture that `choices` stand for, whichever of its decisions they hold.

        This is how any strategy turns what it proposes into an architecture: a changed choice can make other decisions
        taken, which `choices` then lack, or untaken, which are dropped.

        Args:
            choices: of any of the space's decisions.
            fill: returns a choice for a decision that is taken and missing, in the order of the decisions.

        Raises:
            InputError: a choice that its decision does not have.
        """
        return self._completed(choices, fill)

    def _completed(self, choices: Mapping[str, Any], fill: Fill) -> Architecture:
        taken: dict[str, Choice] = {}
        state: State = ()
        for decision, nodes in zip(self.decisions, self.tree.levels, strict=True):
            active, following = nodes[state].active, nodes[state].following
            place = 0
            if active:
                place = decision.index(choices[decision.name] if decision.name in choices else fill(decision))
                if place < 0:
                    raise InputError(*self._wrong(decision, choices))
                taken[decision.name] = decision.choices[place]
            state = following[place]
        return self._remember(Architecture(taken))

    # Samplers of other libraries.

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Return every decision as an Optuna distribution; every combination is legal after `check(drop_untaken)`."""
        from optuna.distributions import CategoricalDistribution

        return {decision.name: CategoricalDistribution(decision.choices) for decision in self.decisions}

    def suggest(self, trial: Trial) -> Architecture:
        """Let an Optuna trial take the decisions one after the other; those not taken are never suggested."""
        taken: dict[str, Choice] = {}
        for decision, active in self._walk(taken):
            if active:
                choice = trial.suggest_categorical(decision.name, decision.choices)
                taken[decision.name] = decision.choices[decision.index(choice)]
        return self._remember(Architecture(taken))

    # What an architecture is.

    def task(self, num_outputs: int | None = None, in_chans: int | None = None, img_size: int | None = None) -> Task:
        """Return the space's own task with another head, other channels or another size; None leaves them."""
        own = self.default_task
        side = img_size or own.img_size
        return replace(
            own, num_outputs=num_outputs or own.num_outputs, input_size=(in_chans or own.in_chans, side, side)
        )

    def build(self, arch: Mapping[str, Choice], task: Task | None = None) -> nn.Module:
        """Build a stand-alone network for `task`, by default the space's own: images (N, C, H, W) to (N, num_outputs).

        Where the space searches the resolution, the architecture has it. Initial weights come from torch's global
        generator. Raises InputError for an illegal architecture or a task that the space cannot serve.
        """
        arch = self.check(arch)
        return self._build(arch, self._task_of(arch, task))

    def layers(self, arch: Mapping[str, Choice], task: Task | None = None) -> list[Layer] | None:
        """Describe the network row by row, without building it; None for a space that cannot."""
        arch = self.check(arch)
        return self._layers(arch, self._task_of(arch, task))

    def cost(self, arch: Mapping[str, Choice], task: Task | None = None) -> dict[str, int]:
        """Return `{"params", "macs"}` of one image: the sum of the layers, else counted on a module without storage."""
        layers = self.layers(arch, task)
        if layers is not None:
            return {"params": sum(row.params for row in layers), "macs": sum(row.macs for row in layers)}
        arch = self.check(arch)
        task = self._task_of(arch, task)
        with without_storage():
            module = self._build(arch, task).eval()
        with torch.device("meta"):
            return {"params": count_params(module)[0], "macs": count_macs(module, torch.empty(1, *task.input_size))}

    def supernet(self, task: Task | None = None) -> Supernet:
        """Build the network that shares weights between all architectures; InputError for a space without one."""
        return self._supernet(self._fitting(task))

    def draw(self, arch: Architecture | None = None, img_size: int | None = None) -> str:
        """Return an SVG picture of `arch`, or of the space where there is none."""
        return draw_chain(self, arch, img_size)

    # Inside.

    def _task_of(self, arch: Architecture, task: Task | None) -> Task:
        """Return `task`, or the space's own, at the size that `arch` works on."""
        task = self._fitting(task)
        side = self.input_size(arch, task.img_size)
        return task if side == task.img_size else task.resized((task.in_chans, side, side))

    def _fitting(self, task: Task | None) -> Task:
        """Return `task`, or the space's own; InputError where networks are for another one."""
        if task is not None and self.for_task not in (None, task.name):
            raise InputError(f"task.name: networks of the space {self.name} are for {self.for_task}; got {task.name}")
        return task or self.default_task

    def _walk(self, taken: Mapping[str, Choice]) -> Iterator[tuple[Decision, bool]]:
        """Yield each decision with whether it is taken; the caller enters its choice in `taken` before the next."""
        state: State = ()
        for index, decision in enumerate(self.decisions):
            active = self.tree.active(index, state)
            yield decision, active
            choice = taken.get(decision.name, decision.choices[0])
            state = self.tree.following(index, state, decision.index(choice) if active else -1)

    @cached_property
    def _checked(self) -> dict[int, Architecture]:
        return {}

    def _remember(self, arch: Architecture) -> Architecture:
        """Keep the last few checked architectures, so that passing one through several methods checks it once.

        By identity: one with 1.0 or True where the choice is 1 is equal, but not checked.
        """
        self._checked[id(arch)] = arch
        if len(self._checked) > 64:
            del self._checked[next(iter(self._checked))]
        return arch

    def _wrong(self, decision: Decision, choices: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the choice for a decision that is taken: nothing or one sentence."""
        if decision.name not in choices:
            return [f"{decision.name}: missing; allowed {either(decision.choices)}"]
        got = choices[decision.name]
        return [] if decision.index(got) >= 0 else [f"{decision.name}: got {got!r}; allowed {either(decision.choices)}"]

    def _unknown(self, name: str) -> str:
        allowed = ", ".join(self._named) if len(self._named) <= 12 else f"{len(self._named)} names"
        near = did_you_mean(name, self._named)
        return f"{name}: space {self.name} has no such decision; allowed {allowed}{near}"


def _brief(problems: list[str]) -> list[str]:
    """Return `problems` with what is missing at the end, and in one sentence where that is a lot."""
    missing = [problem for problem in problems if ": missing; " in problem]
    others = [problem for problem in problems if problem not in missing]
    if len(missing) > 3:
        missing = [f"{missing[0]}; {len(missing) - 1} more decisions are missing"]
    return others + missing
