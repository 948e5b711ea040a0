"""N2N: a policy learns which layers of a model to leave out, then a second one how far to shrink those that are left.

Ashok, Rhinehart, Beainy and Kitani, "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement
Learning" (ICLR 2018, arXiv 1709.06030).

Published: more than tenfold compression of a ResNet-34 at similar accuracy, and policies learnt on a small teacher that
start well on a larger one; per-network figures are not known here. Where the public code is known to differ from its
paper or to be wrong, this follows the paper: a moving baseline that begins at the first mean reward, an advantage for
each rollout, shrinkage cells that are trained, rewards on held-out training images instead of test images, and students
that are met twice are trained once. Rewards of both stages compare with the original model, so the compression that is
told is the total one (the code measures the second stage against the winner of the first).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from compress.core.environment import one_thread
from compress.core.errors import InputError
from search.optuna_internals import note_in_trial, trial_notes
from search.strategies.n2n_learning import (
    Policies,
    Progress,
    Rollout,
    kept_layers,
    removal_stage,
    shrinkage_stage,
)
from search.strategies.n2n_policies import RemovalPolicy, ShrinkagePolicy, load_policies, save_policies
from search.strategies.n2n_reward import INVALID, Limits, penalised, reward, tolerance
from search.strategies.replay import Replay
from search.strategies.sampler import Choices, Finished, Params, SpaceSampler
from search.strategies.strategy import StrategyBase, StrategyContext, strategies
from spaces.architecture import Architecture
from spaces.n2n import N2NSpace

POLICIES = "policies.safetensors"
"""The file in a run that holds what its policies have learnt."""
_NOTE = "n2n:invalid"
_DRAWS = 10  # invalid ones in a row, and one network is drawn without the policy
_STALE = 10  # epochs in a row without a network that was not met before end a stage


class N2NSampler(SpaceSampler):
    """Draws networks from the policy of the stage that the finished trials have come to.

    A draw that is invalid (not smaller than what it is made from, a linear layer of too many or too few inputs, a
    constraint that costs nothing to check) is no trial: it is worth -1 at once, is noted in the trial that was asked
    for, and the policy draws again. So the policies are a function of the study, and any worker can make them.

    Args:
        space: of the students.
        base_value: returns what the original model is worth by the objective; asked once it is needed.
        rollouts: networks per epoch, invalid ones and ones met before included.
        removal_epochs: epochs of the first stage; it ends earlier where it meets nothing new.
        hidden: units of the LSTMs.
        removal_lr, shrinkage_lr: Adam's learning rates.
        limits: what a student should keep to; breaking it costs more from epoch to epoch.
        policies: a file with policies to begin with; None: new ones.
        seed, feasible: as for `SpaceSampler`.
    """

    def __init__(
        self,
        space: N2NSpace,
        base_value: Callable[[], float],
        *,
        rollouts: int = 5,
        removal_epochs: int = 100,
        hidden: int = 30,
        removal_lr: float = 0.003,
        shrinkage_lr: float = 0.1,
        limits: Limits | None = None,
        policies: Path | None = None,
        seed: int = 0,
        feasible: Callable[[Params], bool] | None = None,
    ) -> None:
        super().__init__(space.distributions(), seed=seed, space=space)
        self.students, self._base_value, self.rollouts, self.removal_epochs = (
            space,
            base_value,
            rollouts,
            removal_epochs,
        )
        self.hidden, self.rates, self.limits = hidden, (removal_lr, shrinkage_lr), limits or Limits()
        self.worth_a_trial, self._file = feasible, policies
        self.base_params = space.cost(space.widest())["params"]
        self._invalid: list[Rollout] = []
        self._noted: Mapping[int, Sequence[Rollout]] = {}
        self._replay = Replay(self._begin, self._take)
        self._policies()  # a file that does not fit is found now

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of `trial`; invalid draws on the way are noted in it."""
        self._read_notes(study)
        self._invalid = []
        params = super().sample_relative(study, trial, search_space)
        if self._invalid:
            note_in_trial(study, trial, _NOTE, self._invalid)
        return params

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Draw from the policy until a network is valid."""
        with one_thread():
            stage = self._replay.after(finished, choices).stage
            for _ in range(_DRAWS):
                rollout = dict(stage.draw(generator))
                arch = self._completed(stage.base, rollout)
                if self.is_valid(arch, stage.base, stage.epoch):
                    return dict(arch)
                self._invalid.append(rollout)
        return dict(self._any(stage.base, stage.epoch, generator))

    def is_valid(self, arch: Architecture, parent: Architecture, epoch: int) -> bool:
        """Return whether a network is worth a trial; nothing is built to tell.

        It has to be smaller than `parent`, and, once limits are no longer tolerated, have few enough parameters.
        """
        params = self._params(arch)
        if params >= self._params(parent) or (self.limits.too_large(params) and tolerance(epoch) == 0):
            return False
        if not self.students.has_sound_inputs(arch):
            return False
        return self.worth_a_trial is None or self.worth_a_trial(dict(arch))

    def is_exhausted(self, study: Study) -> bool:
        """Return whether the second policy has come to rest: it draws nothing that was not met before."""
        progress = self.progress(study)
        return len(progress.stages) > 1 and progress.stage.stale >= _STALE

    def progress(self, study: Study) -> Progress:
        """Return how far the finished trials of `study` have come."""
        self._read_notes(study)
        finished = self._history.update(study.get_trials(deepcopy=False), self._sign(study))
        choices = {name: tuple(each.choices) for name, each in self.students.distributions().items()}
        with one_thread():
            return self._replay.after(finished, choices)

    def winners(self, study: Study) -> list[FrozenTrial]:
        """Return the complete trials by their rewards, best first; those that break a limit after all others."""
        done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
        ranks = {trial.number: self._rank(trial.params, float(trial.values[0])) for trial in done}
        return sorted(done, key=lambda trial: (*(-part for part in ranks[trial.number]), trial.number))

    def summary(self, study: Study) -> str:
        """Return in one line how the search went."""
        progress, best = self.progress(study), self.winners(study)
        if not best:
            return "n2n: no student was evaluated"
        epochs = " and ".join(str(stage.epoch) for stage in progress.stages)
        arch = self.students.check(best[0].params, drop_untaken=True)
        times, share = self.base_params / self._params(arch), best[0].values[0] / self._base_value()
        kept, worth = self._rank(best[0].params, float(best[0].values[0]))
        broken = "" if kept else ", which breaks a limit"
        return (
            f"n2n: {epochs} epochs; best reward {worth:.3f}{broken}: {times:.1f}× fewer parameters than the given "
            f"model, {share:.1%} of its {self._base_value():.4g}"
        )

    def leave(self, study: Study, directory: Path) -> None:
        """Write what the policies have learnt to a run's directory, for searches with other teachers."""
        policies = self.progress(study).policies
        save_policies(directory / POLICIES, policies.removal, policies.shrinkage, policies.factors)

    def _read_notes(self, study: Study) -> None:
        trials = study.get_trials(deepcopy=False)
        notes = ((trial.number, trial_notes(trial).get(_NOTE)) for trial in trials)
        self._noted = {number: note for number, note in notes if note}

    def _policies(self) -> Policies:
        factors = self.students.config.factors
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            found = Policies(RemovalPolicy(self.hidden), ShrinkagePolicy(self.hidden, len(factors)), factors)
        if self._file is not None:
            load_policies(self._file, found.removal, found.shrinkage, factors)
        return found

    def _begin(self, choices: Choices) -> Progress:
        policies = self._policies()
        return Progress(policies, [removal_stage(self.students, policies, self.rates[0])])

    def _take(self, progress: Progress, trial: Finished) -> None:
        """Learn from a trial, and from the invalid draws before it."""
        arch = self.students.check(trial.params, drop_untaken=True)
        stage = progress.stage
        second = len(progress.stages) > 1
        if second and kept_layers(arch) != kept_layers(stage.base):
            return  # of the first stage: another worker ended it late
        for rollout, worth, new in self._rewarded(progress, trial, arch, stage.epoch):
            stage.take(rollout, worth, new, self.rollouts)
        if not second and (stage.epoch >= self.removal_epochs or stage.stale >= _STALE):
            met = progress.met
            base = max(met, key=lambda each: met[each]) if met else stage.base
            progress.stages.append(shrinkage_stage(self.students, base, progress.policies, self.rates[1]))

    def _rewarded(
        self, progress: Progress, trial: Finished, arch: Architecture, epoch: int
    ) -> Iterator[tuple[Rollout, float, bool]]:
        """Yield rollouts with their rewards, and whether they are of a network that was not met before."""
        for rollout in self._noted.get(trial.number, ()):
            yield rollout, INVALID, False
        if not math.isfinite(trial.score):
            return
        kept, worth = self._rank(arch, trial.score)
        new = arch not in progress.met
        progress.met[arch] = kept, worth
        yield arch, worth if kept else penalised(worth, epoch), new

    def _rank(self, params: Mapping[str, Any], value: float) -> tuple[bool, float]:
        """Return whether a student keeps the limits, and its reward."""
        size = self._params(self.students.check(params, drop_untaken=True))
        return not self.limits.broken(size, value), reward(size, value, self.base_params, self._base_value())

    def _params(self, arch: Architecture) -> int:
        return self.students.cost(arch)["params"]

    def _completed(self, base: Architecture, rollout: Rollout) -> Architecture:
        """Return the network of a rollout: what it does not say is as in `base`, else as wide as can be."""
        return self.students.complete({**base, **rollout}, lambda decision: decision.choices[-1])

    def _any(self, base: Architecture, epoch: int, generator: random.Random) -> Architecture:
        """Return a valid neighbour of `base`, or a random network where none is."""
        near = list(self.students.neighbours(base, generator))
        if len(kept_layers(base)) and base != self.students.widest():
            near = [each for each in near if kept_layers(each) == kept_layers(base)]
        valid = [each for each in near if self.is_valid(each, base, epoch)]
        return generator.choice(valid or near)


@strategies.register("n2n")
class N2NStrategy(StrategyBase):
    """Learns which layers of a model to leave out, then how far to shrink the others; for the space `n2n`."""

    maximizes: ClassVar[bool] = True
    name: Literal["n2n"] = "n2n"
    rollouts: int = Field(5, ge=1, description="students per update of a policy")
    removal_epochs: int = Field(100, ge=1, description="updates of the first policy; then the second has its turn")
    hidden: int = Field(30, ge=1, description="units of the policies' LSTMs")
    removal_lr: float = Field(0.003, gt=0, description="learning rate of the policy that removes layers")
    shrinkage_lr: float = Field(0.1, gt=0, description="learning rate of the policy that shrinks layers")
    max_params: int | None = Field(None, ge=1, description="parameters that a student should have at most")
    min_accuracy: float | None = Field(
        None, description="what a student should be worth at least, as the objective says"
    )
    accuracy: float | None = Field(
        None, gt=0, description="what the given model is worth, as the objective says; null: the evaluator knows"
    )
    policy: str | None = Field(
        None, description="the run of another search by n2n, whose policies this one starts from"
    )

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler; raises InputError where there is no teacher to compare with."""
        if not isinstance(context.space, N2NSpace):
            raise InputError(
                f"search.strategy: n2n removes and shrinks layers of a given model; got space {context.space.name}; "
                "allowed: n2n"
            )
        if context.directions != ("maximize",):
            raise InputError(
                "search.strategy: n2n compares students by a share of what the given model is worth, so "
                "it needs one metric to maximize"
            )
        if self.accuracy is None and context.baseline is None:
            raise InputError(
                "search.strategy.accuracy: missing; the evaluator knows no given model to compare students with: say "
                "what it is worth, or let students learn from it (evaluator.train.step: distilled)"
            )
        try:
            return self._sampler(context, context.space)
        except InputError as error:
            raise InputError(*(f"search.strategy.{problem}" for problem in error.problems)) from error

    def _sampler(self, context: StrategyContext, space: N2NSpace) -> N2NSampler:
        return N2NSampler(
            space,
            _once(self.accuracy, context.baseline),
            rollouts=self.rollouts,
            removal_epochs=self.removal_epochs,
            hidden=self.hidden,
            removal_lr=self.removal_lr,
            shrinkage_lr=self.shrinkage_lr,
            limits=Limits(self.max_params, self.min_accuracy),
            policies=None if self.policy is None else Path(self.policy).expanduser() / POLICIES,
            seed=context.seed,
            feasible=context.feasible,
        )


def _once(given: float | None, ask: Callable[[], float] | None) -> Callable[[], float]:
    """Return what tells the worth of the given model, and asks for it once."""
    known = [] if given is None else [given]

    def value() -> float:
        if not known:
            assert ask is not None
            known.append(ask())
            if not known[0] > 0:
                raise InputError(f"search.strategy: n2n compares with a given model that is worth {known[0]:g}")
        return known[0]

    return value
