from __future__ import annotations

import math
import threading
import time
from collections import Counter

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler

from compress.core.errors import CompressError, InputError
from evaluators.candidates.evaluator import Evaluator, Stopped
from evaluators.tasks import DEFAULT
from search.config import SearchConfig
from search.job import SearchJob
from search.judge import Judge
from search.objective import ObjectiveConfig
from search.outcome import best, counts_by_state, history
from search.runner import Runner
from search.strategies.made_anew import MadeAnew
from search.study import Sharing, open_study
from spaces.architecture import Architecture
from spaces.mobilenetv3.space import MobileNetV3Space
from spaces.registry import create

from .conftest import DECISIONS, top1


class Measured(Evaluator):
    """Gives top1, which takes an evaluation, and cost, which does not; remembers what it evaluated."""

    metrics = ("top1", "cost")

    def __init__(self, top1=lambda arch: top1(**arch)):
        self.top1, self.seen = top1, []

    def free(self, arch):
        return {"cost": float(sum(arch.values()))}

    def evaluate(self, arch, wanted, seed, report=None):
        self.seen.append(tuple(arch.values()))
        return {"top1": self.top1(arch)}


class Script(BaseSampler):
    """Proposes what it is told, one architecture after the other."""

    def __init__(self, *archs):
        self.archs = [dict(zip(DECISIONS, arch, strict=True)) for arch in archs]

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.archs[trial.number % len(self.archs)][param_name]


@pytest.fixture
def make(table):
    def runner(evaluator, *archs, trials=3, study=None, pruner=None, **objective):
        space = create("table", {"path": str(table), "decisions": DECISIONS})
        config = ObjectiveConfig.model_validate(objective).for_task(DEFAULT)
        sampler = Script(*archs) if archs else MadeAnew(lambda seed: optuna.samplers.RandomSampler(seed=seed))
        directions = list(config.directions)
        study = study or optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)
        return Runner(study, Judge(space, evaluator, config, None, 0), trials)

    return runner


def work(runner):
    while (asked := runner.ask()) is not None:
        runner.run(asked)
    return runner.study.get_trials(deepcopy=False)


def states(trials):
    return [trial.state.name for trial in trials]


def test_exactly_as_many_trials_as_planned_are_evaluated(make):
    evaluator = Measured()
    trials = work(make(evaluator, trials=20))
    assert states(trials) == ["COMPLETE"] * 20
    assert trials[0].value == top1(**trials[0].params)
    assert trials[0].user_attrs["result"]["metrics"]["top1"] == trials[0].value
    assert trials[0].user_attrs["result"]["seconds"] >= 0


def test_a_broken_constraint_that_costs_nothing_is_refused_before_evaluation_and_does_not_count(make):
    evaluator = Measured()
    archs = [(3, 3, 3, 3), (0, 0, 0, 1), (3, 3, 3, 2), (0, 0, 1, 0)]
    trials = work(make(evaluator, *archs, trials=2, constraints={"cost": {"max": 5}}))
    assert states(trials) == ["PRUNED", "COMPLETE", "PRUNED", "COMPLETE"]
    assert trials[0].user_attrs["result"]["refused"] == "cost 12 is above 5"
    assert trials[0].user_attrs["result"]["violations"] == {"cost": 7.0}
    assert evaluator.seen == [(0, 0, 0, 1), (0, 0, 1, 0)]


def test_a_constraint_broken_by_the_evaluation_is_pruned_and_counts(make):
    evaluator = Measured()
    trials = work(make(evaluator, (0, 0, 0, 0), (3, 2, 3, 1), trials=2, constraints={"top1": {"min": 90}}))
    assert states(trials) == ["PRUNED", "COMPLETE"]
    assert trials[0].user_attrs["result"]["broken"] == "top1 86 is below 90"


class Told(Measured):
    """Reports 99 while it trains, whatever comes out in the end; 99 of the architecture `until` stops it."""

    def __init__(self, until=()):
        super().__init__()
        self.until = until

    def evaluate(self, arch, wanted, seed, report=None):
        report(1, 99.0)
        if tuple(arch.values()) == self.until:
            raise Stopped(1, 99.0)
        return super().evaluate(arch, wanted, seed)


def test_what_a_training_reported_is_no_value_of_a_trial_that_was_stopped_or_broke_a_constraint(make):
    archs = [(0, 0, 0, 0), (3, 2, 3, 1), (3, 2, 3, 0), (0, 0, 0, 0), (3, 2, 3, 1)]
    runner = make(Told(until=(3, 2, 3, 0)), *archs, trials=5, constraints={"top1": {"min": 90}})
    trials = work(runner)
    assert states(trials) == ["PRUNED", "COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    value = top1(3, 2, 3, 1)
    assert [entry["values"] for entry in history(runner.study)] == [None, [value], None, None, [value]]
    counted = {name: number for name, number in counts_by_state(runner.study).items() if number}
    assert counted == {"complete": 2, "known": 1, "broken": 2, "stopped": 1}


def test_the_same_network_is_never_evaluated_twice(make):
    evaluator = Measured()
    trials = work(make(evaluator, (1, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1), trials=3))
    assert [trial.value for trial in trials[:2]] == [top1(1, 1, 1, 1)] * 2
    assert trials[1].user_attrs["result"]["same_as"] == 0
    assert evaluator.seen == [(1, 1, 1, 1), (2, 1, 1, 1)]


def test_neither_is_one_that_broke_a_constraint(make):
    evaluator = Measured()
    trials = work(
        make(evaluator, (0, 0, 0, 0), (0, 0, 0, 0), (3, 2, 3, 1), trials=3, constraints={"top1": {"min": 90}})
    )
    assert states(trials) == ["PRUNED", "PRUNED", "COMPLETE"]
    assert trials[1].user_attrs["result"]["same_as"] == 0
    assert len(evaluator.seen) == 2


def test_nor_one_that_another_search_of_the_study_evaluated(make):
    first = make(Measured(), (1, 1, 1, 1), (2, 1, 1, 1), trials=1)
    work(first)
    evaluator = Measured()
    again = make(evaluator, trials=2, study=first.study)
    again.study.sampler = Script((1, 1, 1, 1))
    assert work(again)[1].user_attrs["result"]["same_as"] == 0
    assert evaluator.seen == []


def test_a_network_under_evaluation_elsewhere_is_waited_for(make):
    evaluator = Measured()
    runner = make(evaluator, (1, 1, 1, 1), trials=2)
    first, second = runner.ask(), runner.ask()
    assert (first.twin, second.twin) == (None, 0)
    waiting = threading.Thread(target=runner.run, args=(second,))
    waiting.start()
    time.sleep(0.15)
    assert waiting.is_alive()
    runner.run(first)
    waiting.join(timeout=10)
    trials = runner.study.get_trials(deepcopy=False)
    assert states(trials) == ["COMPLETE"] * 2
    assert trials[1].user_attrs["result"]["same_as"] == 0
    assert len(evaluator.seen) == 1


def test_a_network_whose_evaluation_elsewhere_failed_is_evaluated_here(make):
    evaluator = Measured()
    runner = make(evaluator, (1, 1, 1, 1), trials=2)
    first, second = runner.ask(), runner.ask()
    runner.fail(first, "lost")
    runner.run(second)
    assert states(runner.study.get_trials(deepcopy=False)) == ["FAIL", "COMPLETE"]


def test_a_value_that_is_not_a_number_counts_as_evaluated(make):
    trials = work(make(Measured(lambda arch: math.nan), trials=2))
    assert states(trials) == ["PRUNED"] * 2
    assert trials[0].user_attrs["result"]["broken"] == "top1 is nan, no finite number"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_constraints_are_not_kept_by_what_is_no_finite_number(make, value):
    evaluator = Measured()
    evaluator.free = lambda arch: {}
    evaluator.evaluate = lambda arch, wanted, seed, report=None: {"top1": 50.0, "cost": value, "also": math.nan}
    (trial,) = work(make(evaluator, trials=1, constraints={"cost": {"max": 5}}))
    assert trial.state.name == "PRUNED"
    result = trial.user_attrs["result"]
    assert result["broken"] == f"cost is {value}, no finite number" and result["metrics"] == {"top1": 50.0}


@pytest.mark.parametrize("value", [np.float32(50), np.int64(50), np.array(50.0), torch.tensor(50.0), 50, True])
def test_scalars_of_other_libraries_are_numbers(make, value):
    evaluator = Measured(lambda arch: value)
    (trial,) = work(make(evaluator, trials=1))
    assert trial.values == [float(value)] and type(trial.user_attrs["result"]["metrics"]["top1"]) is float


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "Measured.evaluate gave None; allowed: a mapping of metrics to numbers"),
        (50.0, "Measured.evaluate gave 50.0; allowed: a mapping"),
        ({"top1": None}, "Measured.evaluate gave top1 = None; allowed: a number"),
        ({"top1": "93"}, "Measured.evaluate gave top1 = '93'; allowed: a number"),
        ({"top1": [1.0, 2.0]}, r"Measured.evaluate gave top1 = \[1.0, 2.0\]"),
        ({"top1": 50.0, "more": torch.ones(2)}, r"Measured.evaluate gave more = tensor"),
        ({3: 50.0}, "Measured.evaluate gave 3 = 50.0"),
        ({"top": 50.0}, "Measured.evaluate was asked for top1, and gave none"),
    ],
)
def test_what_an_evaluator_gives_that_is_no_metric_is_named(make, given, says):
    evaluator = Measured()
    evaluator.evaluate = lambda arch, wanted, seed, report=None: given
    with pytest.raises(CompressError, match=f"^search.evaluator: {says}"):
        work(make(evaluator))


def raising(*bad):
    """Return what cannot evaluate architectures whose first choice is one of `bad`."""

    def judged(arch):
        if arch["a"] in bad:
            raise ValueError("no such operator")
        return top1(**arch)

    return Measured(judged)


ARCHS = [(3, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0), (0, 0, 0, 0)]


def test_an_architecture_that_something_is_raised_for_is_left_out_and_the_search_goes_on(make, capsys):
    runner = make(raising(1, 2), *ARCHS, trials=4)
    trials = work(runner)
    assert states(trials) == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert trials[1].user_attrs["result"]["failed"] == "ValueError: no such operator"
    assert "in judged" in trials[1].user_attrs["result"]["trace"]
    said = capsys.readouterr().err
    assert "search: trial 1, {'a': 1, 'b': 0, 'c': 0, 'd': 0} failed and is left out: ValueError: no such" in said
    counted = counts_by_state(runner.study)
    assert (counted["complete"], counted["left_out"], counted["stopped"], counted["failed"]) == (2, 2, 0, 0)


def test_where_most_evaluations_fail_the_search_ends_with_the_trace_of_the_last(make, monkeypatch):
    assert len(work(make(raising(1, 2, 0), *ARCHS, trials=4))) == 4
    monkeypatch.setattr("search.runner.MOST_FAILED", 3)
    runner = make(raising(1, 2, 0), *ARCHS, trials=4)
    says = (
        r"^the evaluation of 3 of 4 architectures failed, the last trial 3, \{'a': 0.*: ValueError: no such operator\n"
    )
    with pytest.raises(CompressError, match=says) as caught:
        work(runner)
    assert "in judged" in caught.value.__notes__[0]
    with pytest.raises(CompressError, match=r"no winner: 3 of 3 failed, the last: ValueError: no such operator"):
        runner = make(raising(1, 2, 3, 0), *ARCHS, trials=4)
        with pytest.raises(CompressError, match="3 of 3 architectures failed"):
            work(runner)
        best(runner.study, runner.judge.space, None)


def test_a_sentence_of_ours_and_memory_that_is_short_are_told_apart(make):
    def short(arch):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            raise CompressError("candidate: out of memory on cuda:0; lower data.batch_size") from error

    assert states(work(make(Measured(short), trials=2))) == ["PRUNED", "PRUNED"]

    def complaint(arch):
        raise InputError("the table has no top1 for it")

    runner = make(Measured(complaint))
    with pytest.raises(InputError, match="the table has no top1 for it"):
        work(runner)
    (trial,) = runner.study.get_trials(deepcopy=False)
    assert trial.state.name == "FAIL" and "no top1" in trial.user_attrs["result"]["error"]


def test_a_sampler_that_proposes_no_choice_is_named(make):
    runner = make(Measured(), (9, 0, 0, 0))
    with pytest.raises(CompressError, match=r"^search\.strategy: trial 0: Script: ValueError: '9' not in"):
        work(runner)


def test_a_failed_trial_does_not_count(make):
    evaluator = Measured()
    runner = make(evaluator, trials=2)
    runner.fail(runner.ask(), "lost")
    assert Counter(states(work(runner))) == {"FAIL": 1, "COMPLETE": 2}


def test_a_space_question_that_raises_leaves_no_trial_running(make):
    evaluator = Measured()
    evaluator.free = lambda arch: (_ for _ in ()).throw(InputError("the table has no cost"))
    runner = make(evaluator)
    with pytest.raises(InputError, match="no cost"):
        runner.ask()
    assert states(runner.study.get_trials(deepcopy=False)) == ["FAIL"]


def test_nothing_but_refused_architectures_ends_the_search(make, monkeypatch):
    monkeypatch.setattr("search.runner.REFUSALS", 20)
    runner = make(Measured(), constraints={"cost": {"min": 100}})
    with pytest.raises(CompressError, match=r"20 architectures in a row .*: cost \d+ is below 100\)"):
        runner.ask()


class Curve(Measured):
    """Reports ten steps, and stops where it is told to."""

    def evaluate(self, arch, wanted, seed, report=None):
        final = super().evaluate(arch, wanted, seed)["top1"]
        for step in range(1, 11):
            if report is not None and report(step, final * step / 10):
                raise Stopped(step, final * step / 10)
        return {"top1": final}


def test_the_pruner_stops_what_falls_behind(make):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2)
    trials = work(make(Curve(), (3, 2, 3, 1), (0, 0, 0, 0), (3, 2, 2, 1), pruner=pruner, trials=3))
    assert states(trials) == ["COMPLETE", "PRUNED", "PRUNED"]
    assert len(trials[0].intermediate_values) == 10
    assert len(trials[1].intermediate_values) < 4


def test_several_objectives_are_told_as_several_values(make):
    trials = work(make(Curve(), (3, 2, 3, 1), maximize=["top1"], minimize=["cost"], trials=1))
    assert trials[0].values == [top1(3, 2, 3, 1), 9.0]


def test_a_metric_that_nothing_measures_is_named(make):
    judge = make(Measured(), maximize=["top2"]).judge
    with pytest.raises(InputError, match=r"nothing measures 'top2'.*did you mean 'top1'"):
        judge.check()
    with pytest.raises(InputError, match=r"latency_ms.*give search\.latency"):
        make(Measured(), constraints={"latency_ms": {"max": 1}}).judge.check()


def test_a_trial_of_a_worker_that_dies_meanwhile_is_taken_over(make):
    evaluator = Measured()
    runner = make(evaluator, trials=2)
    lost = runner.ask()
    lost.trial.set_user_attr("worker", runner._worker.rsplit(":", 2)[0] + ":999999999:1")
    trials = work(runner)
    assert Counter(states(trials)) == {"FAIL": 1, "COMPLETE": 2}
    assert [trial.params for trial in trials if "retry_of" in trial.user_attrs] == [lost.trial.params]


def test_what_is_given_back_is_queued(make):
    runner = make(Measured(), trials=1)
    asked = runner.ask()
    runner.give_back(asked)
    assert states(runner.study.get_trials(deepcopy=False)) == ["FAIL", "WAITING"]
    assert runner.ask().arch == asked.arch


def test_more_trials_than_planned_from_another_host_are_dropped(make):
    runner = make(Measured(), trials=1)
    ask = runner.study.ask

    def beaten():
        runner.study.ask = ask
        other = ask()  # another host asks between our look and our asking
        runner.judge.space.suggest(other)
        other.set_user_attr("worker", "elsewhere:1:1")
        return ask()

    runner.study.ask = beaten
    assert runner.ask() is None
    assert states(runner.study.get_trials(deepcopy=False)) == ["RUNNING", "FAIL"]


def test_a_worker_seen_from_other_hosts_beats(make, tmp_path, monkeypatch):
    monkeypatch.setattr("search.runner.BEAT_SECONDS", 0.01)
    runner = make(Measured(lambda arch: time.sleep(0.2) or 1.0), trials=1)
    runner.sharing = Sharing(tmp_path / "lock", hosts=True)
    (trial,) = work(runner)
    assert time.time() - trial.user_attrs["beat"] < 10


def test_a_study_on_disk_holds_everything(make, tmp_path):
    study = open_study("toy", None, tmp_path, ["maximize"], Script((1, 1, 1, 1)))
    work(make(Measured(), trials=1, study=study))
    (trial,) = open_study("toy", None, tmp_path, ["maximize"]).trials
    assert trial.user_attrs["result"]["values"] == [trial.value]


def test_proposals_that_break_a_constraint_of_the_space_are_refused_and_the_search_goes_on(make, monkeypatch):
    runner = make(Measured(), (0, 1, 2, 3), (1, 1, 2, 3), (0, 0, 0, 0), (2, 1, 2, 3), trials=2)
    suggest = type(runner.judge.space).suggest

    def constrained(space, trial):  # as spaces of NNI's do, whose constraints samplers of Optuna's do not know
        arch = suggest(space, trial)
        if arch["a"] == 0:
            raise optuna.TrialPruned("a must not be 0")
        return arch

    monkeypatch.setattr(type(runner.judge.space), "suggest", constrained)
    trials = work(runner)
    assert states(trials) == ["PRUNED", "COMPLETE", "PRUNED", "COMPLETE"]
    assert trials[0].user_attrs["result"]["refused"] == "a must not be 0"
    assert runner.judge.evaluator.seen == [(1, 1, 2, 3), (2, 1, 2, 3)]


def test_trials_under_way_on_a_table_with_holes_are_told_apart(tmp_path):
    (tmp_path / "holes.csv").write_text("a,b,accuracy\n0,0,1\n1,1,2\n2,2,3\n")
    space = create("table", {"path": str(tmp_path / "holes.csv"), "decisions": ["a", "b"]})
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    judge = Judge(space, Measured(lambda arch: arch["a"]), ObjectiveConfig(maximize=["top1"]), None, 0)
    runner = Runner(study, judge, 12)
    asked = [runner.ask() for _ in range(12)]  # proposals between the rows, too
    first = {each.arch: each.trial.number for each in reversed(asked)}
    assert {each.twin for each in asked} - {None} <= set(first.values())
    assert sum(each.twin is None for each in asked) == len(first) == 3


def test_the_canonical_form_of_each_architecture_is_computed_once(monkeypatch, tmp_path):
    """However often the search, the evaluator and the latency meter ask which network it is."""
    config = {
        "space": {"name": "mobilenetv3", "preset": "tiny"},
        "strategy": {"name": "random"},
        "objective": {"maximize": ["synflow"], "minimize": ["latency_ms"]},
        "evaluator": {"kind": "proxy", "scores": ["synflow"]},
        "latency": {"mode": "measured", "measure": {"runs": 3, "seconds": 0}},
        "trials": 3,
    }
    job = SearchJob(SearchConfig.model_validate(config), None, None, "once", 0, "cpu", tmp_path)
    counted: list[Architecture] = []
    plain = MobileNetV3Space._canonical
    monkeypatch.setattr(MobileNetV3Space, "_canonical", lambda self, arch: counted.append(arch) or plain(self, arch))
    trials = work(job.open())
    proposed = {tuple(trial.params.items()) for trial in trials}
    assert states(trials) == ["COMPLETE"] * 3 and len(proposed) == 3
    assert len(counted) == 3
