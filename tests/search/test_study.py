from __future__ import annotations

import json
import os
import signal
import socket
import time

import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from compress.core.errors import InputError
from search.journal import JournalLock
from search.study import JOURNAL, is_alive, open_study, revive, sharing, spent_seconds, worker_name

CHOICES = {"a": CategoricalDistribution([1, 2, 3]), "b": CategoricalDistribution(["x", "y"])}
DEAD = f"{socket.gethostname()}:999999999:1"


@pytest.fixture
def study(tmp_path):
    return open_study("toy", None, tmp_path, ["maximize"])


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def left_behind(study, result=None, worker=DEAD):
    """Leave a trial as a killed process would, after it noted `result`."""
    trial = study.ask(CHOICES)
    if worker is not None:
        trial.set_user_attr("worker", worker)
    if result is not None:
        trial.set_user_attr("result", result)
    return trial


def test_a_study_is_found_again(study, tmp_path):
    study.tell(study.ask(CHOICES), 1.0)
    again = open_study("toy", None, tmp_path, ["maximize"])
    assert [trial.value for trial in again.trials] == [1.0]


def test_only_the_end_of_a_trial_waits_for_the_disk(study, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    trial = study.ask(CHOICES)
    trial.set_user_attr("worker", DEAD)
    assert synced == []
    study.tell(trial, 1.0)
    assert len(synced) == 1


def test_other_directions_are_refused(study, tmp_path):
    with pytest.raises(InputError, match="objective asks for"):
        open_study("toy", None, tmp_path, ["minimize"])


def test_a_database_that_cannot_be_opened_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"search\.executor\.storage: cannot open"):
        open_study("toy", "sqlite:////no/such/folder/study.db", tmp_path, ["maximize"])


def test_passwords_are_not_shown(tmp_path):
    with pytest.raises(InputError) as caught:
        open_study("toy", "nosuchdatabase://me:secret@host/study", tmp_path, ["maximize"])
    assert "secret" not in str(caught.value)


def test_another_file_in_the_journals_place_is_refused(tmp_path):
    (tmp_path / JOURNAL).write_text("not a journal\nat all\n")
    with pytest.raises(InputError, match="not a journal"):
        open_study("toy", None, tmp_path, ["maximize"])


def test_a_damaged_last_line_is_told(study, tmp_path):
    study.tell(study.ask(CHOICES), 1.0)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write("garbage\n")
    with pytest.raises(InputError, match="not a journal of Optuna's, or damaged"):
        open_study("toy", None, tmp_path, ["maximize"])


def test_a_line_cut_off_by_a_kill_is_dropped(study, tmp_path):
    study.tell(study.ask(CHOICES), 1.0)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "study_')
    again = open_study("toy", None, tmp_path, ["maximize"])
    again.tell(again.ask(CHOICES), 2.0)
    assert [trial.value for trial in again.trials] == [1.0, 2.0]
    assert all(json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines())


def test_a_line_cut_off_by_a_peer_that_is_killed_later_is_dropped(study, tmp_path):
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "study_')
    study.tell(study.ask(CHOICES), 1.0)
    assert [trial.value for trial in open_study("toy", None, tmp_path, ["maximize"]).trials] == [1.0]


def test_the_journals_lock_ends_with_a_killed_holder(study, tmp_path):
    reading, writing = os.pipe()
    holder = os.fork()
    if not holder:
        JournalLock(tmp_path / JOURNAL).acquire()
        os.write(writing, b"held")
        time.sleep(60)
        os._exit(0)
    assert os.read(reading, 4) == b"held"
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    started = time.monotonic()
    study.tell(study.ask(CHOICES), 1.0)
    assert time.monotonic() - started < 5


def test_the_lock_file_of_another_program_does_not_matter(study, tmp_path):
    (tmp_path / f"{JOURNAL}.lock").symlink_to("/moved/away/study.journal")
    study.tell(study.ask(CHOICES), 1.0)
    assert states(study) == ["COMPLETE"]


def test_a_trial_that_was_measured_is_finished(study):
    left_behind(study, {"values": [3.0], "metrics": {}})
    assert revive(study) == 1
    assert study.trials[0].value == 3.0


@pytest.mark.parametrize(
    "result", [{"refused": "macs 2 is above 1"}, {"broken": "top1 2 is below 3"}, {"seconds": 1.0}]
)
def test_a_trial_that_was_pruned_is_finished_as_such(study, result):
    left_behind(study, {"metrics": {}, **result})
    revive(study)
    assert states(study) == ["PRUNED"]


def test_a_trial_under_evaluation_is_queued_with_the_same_choices(study):
    lost = left_behind(study)
    assert revive(study) == 1
    assert states(study) == ["FAIL", "WAITING"]
    again = study.ask(CHOICES)
    assert again.params == lost.params
    assert again.user_attrs["retry_of"] == lost.number


def test_a_queued_trial_whose_worker_is_killed_while_asking_is_queued_again(study):
    lost = left_behind(study)
    revive(study)
    study.ask()  # killed before the first choice
    revive(study)
    assert states(study) == ["FAIL", "FAIL", "WAITING"]
    assert study.ask(CHOICES).params == lost.params


def test_a_trial_that_was_being_asked_for_is_only_failed(study):
    left_behind(study, worker=None)
    assert revive(study) == 1
    assert states(study) == ["FAIL"]


def test_a_trial_with_an_error_is_failed_and_not_tried_again(study):
    left_behind(study, {"metrics": {}, "error": "ValueError: no"})
    revive(study)
    assert states(study) == ["FAIL"]


def test_trials_of_living_workers_are_left_alone(study):
    left_behind(study, worker=worker_name())
    left_behind(study, worker="elsewhere:12:345")
    assert revive(study) == 0
    assert states(study) == ["RUNNING", "RUNNING"]


def test_a_worker_of_another_host_that_fell_silent_is_dead(study):
    for silence in (10, 10_000):
        left_behind(study, worker="elsewhere:12:345").set_user_attr("beat", time.time() - silence)
    assert revive(study, hosts=True) == 1
    assert states(study) == ["RUNNING", "FAIL", "WAITING"]


def test_a_trial_that_another_host_may_be_asking_for_is_left_alone(study):
    left_behind(study, worker=None)
    assert revive(study, hosts=True) == 0


def test_a_killed_process_is_dead_even_before_its_parent_looks():
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.write(writing, worker_name().encode())
        time.sleep(60)
    worker = os.read(reading, 1000).decode()
    assert is_alive(worker)
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)
    os.waitpid(process, 0)
    assert not is_alive(worker)


def test_a_reused_process_number_is_another_worker():
    host, pid, _ = worker_name().rsplit(":", 2)
    assert not is_alive(f"{host}:{pid}:1")


def test_processes_that_share_a_database_share_a_lock(tmp_path):
    one, other = (sharing("sqlite:///x.db", tmp_path / name) for name in "ab")
    assert one == other and not one.hosts
    assert sharing("postgresql://host/db", tmp_path).hosts
    assert sharing(None, tmp_path / "a") != sharing(None, tmp_path / "b")


def test_time_spent_by_several_workers_at_once_counts_once():
    study = optuna.create_study()
    start = time.time()
    for begin, seconds in ((0, 10), (5, 10), (100, 1)):
        moment = optuna.trial.create_trial(value=0.0, user_attrs={"result": {"seconds": seconds}})
        moment.datetime_start = type(moment.datetime_start).fromtimestamp(start + begin)
        study.add_trial(moment)
    assert spent_seconds(study) == pytest.approx(16)
