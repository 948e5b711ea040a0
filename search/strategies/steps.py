"""Steps from an assignment of decisions to those next to it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from search.strategies.sampler import Choices, Params
from spaces.space import Space


def mutated(params: Params, choices: Choices, generator: random.Random, space: Space | None) -> Params:
    """Return `params` with one decision changed: by the space's own rule, else any that was taken, to any other choice.

    Without a space, no decision is newly taken.
    """
    if space is not None:
        return dict(space.mutate(space.check(params, drop_untaken=True), generator))
    free = [name for name in params if name in choices and len(choices[name]) > 1]
    if not free:
        return dict(params)
    name = generator.choice(free)
    others = [choice for choice in choices[name] if choice != params[name]]
    return {**params, name: generator.choice(others)}


def neighbours(params: Params, choices: Choices, space: Space | None, generator: random.Random) -> Iterator[Params]:
    """Yield every assignment one step away, by the same rules; newly taken decisions are drawn."""
    if space is not None:
        yield from map(dict, space.neighbours(space.check(params, drop_untaken=True), generator))
        return
    for name in params:
        for choice in choices.get(name, ()):
            if choice != params[name]:
                yield {**params, name: choice}


def anything(choices: Choices, generator: random.Random, space: Space | None) -> Params:
    """Return a random architecture: uniform over those of the space, else uniform in every decision."""
    if space is not None:
        return dict(space.sample(generator))
    return {name: generator.choice(given) for name, given in choices.items()}
