from __future__ import annotations

import random
from datetime import datetime, timedelta

from optuna.trial import FrozenTrial, TrialState, create_trial

from search.strategies.history import History, live_number

START = datetime(2026, 1, 1)


def trial(number: int, state: TrialState, value: float = 0.0, ended: float = 0.0) -> FrozenTrial:
    made = create_trial(state=state, value=value if state == TrialState.COMPLETE else None)
    made.number = number
    made.datetime_complete = START + timedelta(seconds=ended) if state.is_finished() else None
    return made


def expected(trials, sign):
    complete = [each for each in trials if each.state == TrialState.COMPLETE]
    complete.sort(key=lambda each: (each.datetime_complete, each.number))
    return [(each.number, sign * each.value) for each in complete]


def test_trials_that_finish_in_any_order_are_listed_as_they_finished():
    generator = random.Random(0)
    for sign in (1, -1):
        history, trials, clock = History(), [], 0.0
        for _ in range(300):
            clock += 1
            if generator.random() < 0.5:
                trials.append(trial(len(trials), TrialState.RUNNING))
            running = [each.number for each in trials if each.state == TrialState.RUNNING]
            if running:
                number = generator.choice(running)
                state = generator.choice([TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED])
                trials[number] = trial(number, state, generator.random(), clock - generator.choice([0, 5]))
            found = history.update(trials, sign)
            assert [(each.number, each.score) for each in found] == expected(trials, sign)
            for each in trials[-3:]:
                assert history.live_number(trials, each) == live_number(trials, each)
            open_ones = [each for each in trials if not each.state.is_finished()]
            assert [each for each in history.unsettled(trials) if not each.state.is_finished()] == open_ones


def test_another_study_is_read_from_its_beginning():
    history = History()
    first = [trial(number, TrialState.COMPLETE, number, number) for number in range(5)]
    second = [trial(number, TrialState.COMPLETE, -number, 100 + number) for number in range(5)]
    history.update(first, 1)
    assert [each.score for each in history.update(second, 1)] == [0, -1, -2, -3, -4]
    assert [each.score for each in history.update(second[:2], 1)] == [0, -1]
    assert [each.score for each in history.update(second, -1)] == [0, 1, 2, 3, 4]


def test_part_of_a_study_is_enough():
    trials = [trial(number, TrialState.COMPLETE, number, number) for number in range(10)]
    history = History()
    assert [each.number for each in history.update(trials[1::2], 1)] == [1, 3, 5, 7, 9]
    assert [each.number for each in history.update(trials[0::2], 1)][-1:] == [8]
