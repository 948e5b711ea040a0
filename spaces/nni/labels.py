"""NNI's labelled mutables as decisions, with the conditions that follow from where they sit in the module tree.

A label inside block `i` of a `Repeat` matters only where the depth is more than `i`, one inside a candidate of a
`LayerChoice` only where that candidate is chosen; a label that occurs in several places matters where any of them does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compress.core.errors import InputError
from spaces.architecture import Choice, Condition, Decision, either

MOST_CHOICES = 4096


@dataclass(frozen=True)
class Label:
    """A label of NNI: the decision that it becomes, and NNI's own value for each of the decision's choices."""

    decision: Decision
    values: tuple[Any, ...]

    def value(self, choice: Choice) -> Any:
        """Return what NNI calls `choice`."""
        return self.values[self.decision.index(choice)]

    def choice(self, value: Any) -> Any:
        """Return the choice for a value of NNI; `value` itself where it is none."""
        return self.decision.choices[self.values.index(value)] if value in self.values else value


@dataclass(frozen=True)
class _Guard:
    """What an enclosing module asks of earlier labels: `holds` of the value of an expression of theirs."""

    expression: Any
    reads: tuple[str, ...]
    holds: Callable[[Any], bool]

    def met(self, sample: Mapping[str, Any]) -> bool:
        """Return whether a sample of NNI meets the guard; one that lacks a label does not."""
        return all(name in sample for name in self.reads) and self.holds(self.expression.freeze(dict(sample)))

    def text(self, labels: Mapping[str, Label]) -> str:
        """Return the guard in words: the choices that meet it."""
        if len(self.reads) > 1:
            return f"{' and '.join(self.reads)} call for it"
        (name,) = self.reads
        met = [choice for choice in labels[name].decision.choices if self.met({name: labels[name].value(choice)})]
        return f"{name} is {either(tuple(met))}" if met else "never"


Guards = tuple[_Guard, ...]


def read_labels(model_space: nn.Module, name: str) -> dict[str, Label]:
    """Return the labels of a `ModelSpace` in an order in which conditions look back only.

    Raises InputError for a label without a finite list of values; `name` is what the sentence calls the space.
    """
    places: dict[str, list[Guards]] = {}
    for label, guards in _places(model_space, ()):
        places.setdefault(label, []).append(guards)
    mutables = labels_of(model_space)
    labels = {label: _label(label, mutable, name) for label, mutable in mutables.items()}
    guarded = {label: alternatives for label, alternatives in places.items() if () not in alternatives}
    ordered = _ordered(list(labels), guarded)
    return {label: _conditional(labels[label], guarded.get(label, []), labels) for label in ordered}


def labels_of(mutable: Any) -> dict[str, Any]:
    """Return the mutables with values that a mutable consists of, by label; constraints are none."""
    from nni.mutable.annotation import MutableAnnotation

    return {label: each for label, each in mutable.simplify().items() if not isinstance(each, MutableAnnotation)}


def _places(module: Any, guards: Guards) -> Iterator[tuple[str, Guards]]:
    """Yield every label below `module` with what its place asks of other labels, outermost first."""
    from nni.nas.nn.pytorch import LayerChoice, Repeat
    from nni.nas.nn.pytorch.base import MutableModule

    mutable = isinstance(module, MutableModule)
    if mutable and type(module).leaf_mutables is not MutableModule.leaf_mutables:
        yield from ((label, guards) for label in labels_of(module))  # it has a mind of its own: no guards inside
        return
    for each in module.mutables if mutable else ():
        yield from ((label, guards) for label in labels_of(each))
    if isinstance(module, Repeat):
        for index, block in enumerate(module.blocks):
            yield from _places(block, guards if index < module.min_depth else (*guards, _deeper(module, index)))
    elif isinstance(module, LayerChoice):
        for name in module.names:
            yield from _places(module[name], (*guards, _chosen(module, name)))
    else:
        for child in module.children():
            yield from _places(child, guards)


def _deeper(repeat: Any, index: int) -> _Guard:
    return _Guard(repeat.depth_choice, tuple(labels_of(repeat.depth_choice)), lambda depth: bool(depth > index))


def _chosen(layers: Any, name: object) -> _Guard:
    return _Guard(layers.choice, tuple(labels_of(layers.choice)), lambda chosen: bool(chosen == name))


def _ordered(names: list[str], guarded: dict[str, list[Guards]]) -> list[str]:
    """Return `names` with each after those that its guards read; one in a circle loses its guards, so it is taken."""
    done: dict[str, None] = {}
    open_names: list[str] = []

    def place(name: str) -> None:
        if name in open_names:
            guarded.pop(name, None)
        elif name not in done:
            open_names.append(name)
            for read in _reads(guarded.get(name, [])):
                place(read)
            open_names.pop()
            done[name] = None

    for name in names:
        place(name)
    return list(done)


def _reads(alternatives: list[Guards]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(read for guards in alternatives for guard in guards for read in guard.reads))


def _conditional(label: Label, alternatives: list[Guards], labels: Mapping[str, Label]) -> Label:
    if not alternatives:
        return label

    def holds(taken: Mapping[str, Choice]) -> bool:
        sample = {name: labels[name].value(choice) for name, choice in taken.items()}
        return any(all(guard.met(sample) for guard in guards) for guards in alternatives)

    words = dict.fromkeys(" and ".join(guard.text(labels) for guard in guards) for guards in alternatives)
    condition = Condition("where " + " or ".join(words), _reads(alternatives), holds)
    return replace(label, decision=replace(label.decision, when=condition))


def _label(name: str, mutable: Any, space: str) -> Label:
    values = _values(name, mutable, space)
    return Label(Decision(name, _choices(values)), tuple(values))


def _values(name: str, mutable: Any, space: str) -> Sequence[Any]:
    """Return NNI's values of a label, in order."""
    from nni.mutable import Categorical, CategoricalMultiple, Numerical

    if isinstance(mutable, Categorical):
        return list(mutable.values)
    if isinstance(mutable, CategoricalMultiple):
        options, chosen = list(mutable.values), mutable.n_chosen
        sizes = range(len(options) + 1) if chosen is None else [chosen]
        if sum(math.comb(len(options), size) for size in sizes) > MOST_CHOICES:
            raise InputError(f"space {space}: label {name} has more than {MOST_CHOICES} subsets to choose from")
        return [list(subset) for size in sizes for subset in itertools.combinations(options, size)]
    if isinstance(mutable, Numerical) and mutable.quantize and math.isfinite(mutable.high - mutable.low):
        steps = math.floor((mutable.high - mutable.low) / mutable.quantize) + 2
        if steps <= MOST_CHOICES:
            grid = [mutable.qclip(mutable.low + step * mutable.quantize) for step in range(steps)]
            return [value for value in dict.fromkeys(grid) if mutable.contains({name: value})]
    raise InputError(
        f"space {space}: label {name} is {mutable!r}; allowed are choices, and numbers between two bounds with a step "
        f"(quantize) that leaves at most {MOST_CHOICES} of them"
    )


def _choices(values: Sequence[Any]) -> tuple[Choice, ...]:
    """Return the values where JSON keeps them as they are, else short texts that tell them apart, else positions."""
    plain = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    if all(isinstance(value, bool | int | float | str) for value in plain):
        return tuple(plain)
    texts = [",".join(map(str, each)) or "none" if isinstance(each, list | tuple) else str(each) for each in values]
    short = len(set(texts)) == len(texts) and all(len(text) <= 40 and "<" not in text for text in texts)
    return tuple(texts) if short else tuple(range(len(values)))
