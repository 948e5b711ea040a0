"""Multi-trial strategies of NNI 3 as Optuna samplers (extra `nni`).

NNI's strategies drive a search themselves and wait for results. Here every proposal makes the strategy anew, hands it
what the study knows through NNI's own means of resuming (`load_state_dict`, `import_data`), and lets it go on for one
model. `Random` and `RegularizedEvolution` run in NNI's sequential engine, with an evaluator that does not train.
`TPE` is asked through its tuner, since NNI's strategy around it sleeps a second per model. On small categorical spaces
it soon repeats itself; NNI then walks through the grid of all combinations instead.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import pickle
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna.samplers import BaseSampler
from pydantic import Field

from compress.core.errors import InputError, did_you_mean
from search.strategies.replay import Replay
from search.strategies.sampler import Choices, Finished, Params, SpaceSampler
from search.strategies.steps import anything
from search.strategies.strategy import StrategyBase, StrategyContext, strategies
from spaces.nni.load import quiet

NNIName = Literal["Random", "TPE", "RegularizedEvolution"]
Sample = dict[str, int]
"""What NNI sees of an assignment: for every decision, in order, the position of its choice."""
_TRIES = 20
"""So many samples of TPE's that break a constraint, and a random one is tried."""
_OWN = ("kwargs", "seed", "optimize_mode")
"""Arguments of NNI's that are not the user's to give."""


class NNISampler(SpaceSampler):
    """Proposes what a strategy of NNI's proposes after the same results.

    NNI knows no conditions between decisions: those that a trial did not take get a choice all the same.

    Args:
        strategy: which of NNI's.
        options: arguments of its constructor.
        others: as for `SpaceSampler`; the space draws architectures where NNI has none left.

    Raises:
        InputError: NNI is not installed, or takes no such argument.
    """

    attempts = 50  # one takes milliseconds

    def __init__(
        self,
        *args: Any,
        strategy: NNIName,
        options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        self.strategy, self.options = strategy, dict(options or {})
        if importlib.util.find_spec("nni") is None:
            raise InputError(f"strategy nni:{strategy} needs the extra: pip install 'compress[nni]'")
        with quiet(logging.ERROR):
            self._make(0)
        self._tuner = Replay(self._new_tuner, self._import)

    def propose(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, generator: random.Random
    ) -> Params:
        """Return the strategy's next sample; anything, where it has none that is new."""
        seed = generator.randrange(2**31)
        with quiet(logging.ERROR):
            if self.strategy == "TPE":
                sample = self._ask_tuner(finished, running, choices, seed)
            else:
                sample = self._run_strategy(finished, running, choices, seed)
        return anything(choices, generator, self.space) if sample is None else _params(sample, choices)

    def _make(self, seed: int) -> Any:
        """Return the strategy; InputError for options that it does not take."""
        from nni.algorithms.hpo.tpe_tuner import TpeTuner
        from nni.nas import strategy

        kind = getattr(strategy, self.strategy)
        parameters = inspect.signature(TpeTuner if self.strategy == "TPE" else kind).parameters
        known = [name for name in parameters if name not in _OWN]
        for key in self.options:
            if key not in known:
                near = did_you_mean(key, known)
                raise InputError(
                    f"search.strategy.options.{key}: NNI's {self.strategy} takes no such argument; allowed: "
                    f"{', '.join(known)}{near}"
                )
        direction = {"optimize_mode": "maximize"} if self.strategy == "TPE" else {}  # NNI's default is to minimize
        try:
            return kind(seed=seed, **direction, **self.options)
        except (TypeError, ValueError) as error:
            raise InputError(f"search.strategy.options: NNI refuses {self.options}: {error}") from error

    def _run_strategy(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, seed: int
    ) -> Sample | None:
        """Let a strategy that knows the finished trials go on for one model in NNI's sequential engine."""
        from nni.mutable import Categorical, MutableDict
        from nni.nas.evaluator import Evaluator
        from nni.nas.execution import SequentialExecutionEngine
        from nni.nas.space import RawFormatModelSpace

        class Nothing(Evaluator):  # type: ignore[misc]
            """Neither builds nor trains: all that is wanted of the model is its sample."""

            def _execute(self, model: object) -> None:
                return

        labels = {label: Categorical(range(size), label=label) for label, size in _labels(choices).items()}
        engine = SequentialExecutionEngine(max_model_count=1)
        made = self._make(seed)
        made.initialize(RawFormatModelSpace(MutableDict(labels), Nothing()), engine)
        made.load_state_dict(_state(made, finished, running, choices, seed))
        made.run()
        return next((dict(model.sample) for model in engine.list_models()), None)

    def _ask_tuner(
        self, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, seed: int
    ) -> Sample | None:
        """Ask a tuner that knows the finished trials; those under way count as the best so far, as NNI does it."""
        import nni

        tuner = self._tuner.after(finished, choices)
        tuner = pickle.loads(pickle.dumps(tuner))  # asking changes it; deepcopy takes ten times as long
        tuner.rng = np.random.default_rng(seed)
        best = max((trial.score for trial in finished), default=0.0)
        tuner.import_data([{"parameter": _sample(params, choices), "value": best} for params in running])
        for _ in range(_TRIES):
            try:
                sample = dict(tuner.generate_parameters(0))
            except nni.NoMoreTrialError:
                break
            params = self.completed(_params(sample, choices), choices, random.Random(seed))
            if self.feasible is None or self.allowed(params):
                return sample
            tuner.trial_end(0, False)  # it remembers not to repeat this one; a new tuner would
        return None

    def _new_tuner(self, choices: Choices) -> Any:
        tuner = self._make(0).tuner
        self._choices = choices
        labels = _labels(choices).items()
        tuner.update_search_space({label: {"_type": "choice", "_value": list(range(size))} for label, size in labels})
        return tuner

    def _import(self, tuner: Any, trial: Finished) -> None:
        tuner.import_data([{"parameter": _sample(trial.params, self._choices), "value": trial.score}])


def _state(
    made: Any, finished: Sequence[Finished], running: Sequence[Params], choices: Choices, seed: int
) -> dict[str, Any]:
    """Return what the strategy would have saved after the finished trials."""
    from nni.nas.strategy.evolution import Individual

    samples = [_sample(trial.params, choices) for trial in finished]
    known = samples + [_sample(params, choices) for params in running]
    members = [Individual(sample, trial.score) for sample, trial in zip(samples, finished, strict=True)]
    return {
        "random_state": np.random.RandomState(seed).get_state(),
        "dedup_history": [frozenset(sample.items()) for sample in known],
        "individual_counter": len(finished),
        "population": members[-getattr(made, "population_size", 1) :],
    }


def _labels(choices: Choices) -> dict[str, int]:
    """Return for every decision a name that NNI accepts as a label (none with a slash), with its number of choices."""
    return {f"d{index}": len(given) for index, given in enumerate(choices.values())}


def _params(sample: Sample, choices: Choices) -> Params:
    return {name: given[code] for (name, given), code in zip(choices.items(), sample.values(), strict=True)}


def _sample(params: Params, choices: Choices) -> Sample:
    """Return `params` for NNI; decisions that are missing get a choice that hangs on the others alone."""
    filler = random.Random(repr(sorted(params.items()))) if len(params) < len(choices) else random.Random(0)
    codes = [
        given.index(params[name]) if name in params else filler.randrange(len(given)) for name, given in choices.items()
    ]
    return dict(zip(_labels(choices), codes, strict=True))


@strategies.register("nni:Random", "nni:TPE", "nni:RegularizedEvolution")
class NNIStrategy(StrategyBase):
    """A multi-trial strategy of NNI's."""

    name: Literal["nni:Random", "nni:TPE", "nni:RegularizedEvolution"] = Field(description="which strategy of NNI's")
    options: dict[str, Any] = Field({}, description="arguments of its constructor, as NNI's documentation names them")

    def sampler(self, context: StrategyContext) -> BaseSampler:
        """Return the sampler; raises InputError where NNI is not installed or takes no such argument."""
        rows = None if context.candidates is None else [dict(arch) for arch in context.candidates]
        which: Any = self.name.partition(":")[2]
        return NNISampler(
            context.distributions,
            seed=context.seed,
            feasible=context.feasible,
            candidates=rows,
            strategy=which,
            options=self.options,
            space=context.space,
        )
