"""Aging evolution: Real et al., "Regularized Evolution for Image Classifier Architecture Search", Algorithm 1."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from optuna.samplers import BaseSampler
from pydantic import Field, model_validator

from search.strategies.sampler import Choices, Finished, Params, SpaceSampler
from search.strategies.steps import anything, mutated
from search.strategies.strategy import StrategyBase, StrategyContext, strategies

_TRIES = 100
"""So many children that are known already, and one of them is proposed all the same."""


class RegularizedEvolutionSampler(SpaceSampler):
    """Mutates the best of a few draws from the trials that finished last.

    The population is the last `population` finished trials, in the order in which they finished: with several workers
    a trial grows old by trials that finish, not by trials that start. While fewer are finished or under way, proposals
    are random. After that, `sample` members are drawn with replacement and the best of them is mutated once.

    Args:
        population: trials that parents are drawn from (P).
        sample: draws per proposal (S).
        identity: probability of proposing the parent unchanged; the paper has 0.05.
        remove: which trial leaves the full population when one finishes; "worst" is another algorithm, for comparison.
        duplicates: whether an architecture that is finished or under way may be proposed again, as in the paper.
        others: as for `SpaceSampler`; the space's own `mutate` and `sample` are used. Without one, a decision takes
            another choice.
    """

    def __init__(
        self,
        *args: Any,
        population: int = 100,
        sample: int = 25,
        identity: float = 0.0,
        remove: Literal["oldest", "worst"] = "oldest",
        duplicates: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        self.population, self.sample = population, sample
        self.identity, self.remove, self.duplicates = identity, remove, duplicates

    def members(self, finished: Sequence[Finished]) -> list[Finished]:
        """Return the population after these trials."""
        if self.remove == "oldest":
            return list(finished[-self.population :])
        newest_first = sorted(finished, key=lambda trial: trial.score)  # stable: of equals the newest stays
        return newest_first[-self.population :]

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Return a mutated winner, or anything while the population grows."""
        if len(finished) + len(running) < self.population or not finished:
            return anything(choices, generator, self.space)
        members = self.members(finished)
        child = self._child(members, choices, generator)
        if not self.duplicates:
            known = [trial.params for trial in finished] + list(running)
            for _ in range(_TRIES):
                if child not in known:
                    break
                child = self._child(members, choices, generator)
        return child

    def _child(self, members: Sequence[Finished], choices: Choices, generator: random.Random) -> Params:
        drawn = [generator.choice(members) for _ in range(self.sample)]
        parent = max(drawn, key=lambda trial: trial.score)
        if self.identity and generator.random() < self.identity:
            return dict(parent.params)
        return mutated(parent.params, choices, generator, self.space)


@strategies.register("regularized_evolution")
class RegularizedEvolutionStrategy(StrategyBase):
    """Aging evolution, as published."""

    name: Literal["regularized_evolution"] = "regularized_evolution"
    population: int = Field(50, ge=1, description="trials that parents are drawn from: the last that finished")
    sample: int = Field(10, ge=1, description="draws from them per proposal, with replacement; the best is mutated")
    identity: float = Field(0.0, ge=0, lt=1, description="probability of an unchanged copy; the paper has 0.05")
    remove: Literal["oldest", "worst"] = Field("oldest", description="which trial leaves; worst is another algorithm")
    duplicates: bool = Field(True, description="whether known architectures may be proposed again, as in the paper")

    @model_validator(mode="after")
    def _something_changes(self) -> RegularizedEvolutionStrategy:
        if self.identity and not self.duplicates:
            raise ValueError("identity proposes known architectures; it needs duplicates: true")
        return self

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler."""
        rows = None if context.candidates is None else [dict(arch) for arch in context.candidates]
        return RegularizedEvolutionSampler(
            context.distributions,
            seed=context.seed,
            feasible=context.feasible,
            candidates=rows,
            space=context.space,
            **self.model_dump(exclude={"name"}),
        )
