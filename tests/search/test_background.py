from __future__ import annotations

import logging
import threading

import optuna
import pytest

from search import runner as runner_module
from search.background import every
from search.runner import Runner
from search.study import Sharing


def test_what_is_done_beside_a_search_goes_on_after_exceptions(caplog: pytest.LogCaptureFixture) -> None:
    calls, enough = [], threading.Event()

    def act() -> None:
        calls.append(None)
        if len(calls) in (1, 2, 4):
            raise OSError("the database is away")
        if len(calls) == 5:
            enough.set()

    with caplog.at_level(logging.WARNING), every(0.01, act):
        assert enough.wait(20)
    assert [record.getMessage() for record in caplog.records] == [
        "search: OSError: the database is away; tried again every 0.01 s"
    ] * 2  # the second call's is the first's once more


def test_a_trial_shows_that_it_lives_though_one_beat_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "BEAT_SECONDS", 0.01)
    study = optuna.create_study()
    trial = study.ask()
    beats, enough, write = [], threading.Event(), trial.set_user_attr

    def set_user_attr(name: str, value: float) -> None:
        beats.append(value)
        if len(beats) == 2:
            raise RuntimeError("connection lost")
        write(name, value)
        if len(beats) >= 4:
            enough.set()

    monkeypatch.setattr(trial, "set_user_attr", set_user_attr)
    worker = Runner(study, None, 1, Sharing(hosts=True))  # type: ignore[arg-type]
    with worker._beating(trial):
        assert enough.wait(20)
    assert study.trials[0].user_attrs["beat"] > beats[1]
