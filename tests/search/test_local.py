from __future__ import annotations

import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from compress.core.errors import CompressError
from search.executors import local
from search.executors.local import preloaded
from search.study import JOURNAL

STRATEGIES = [
    {"name": "regularized_evolution", "population": 8, "sample": 3},
    {"name": "local_search"},
    {"name": "auto"},
    {"name": "reinforce"},
    {"name": "ppo"},
    {"name": "random"},
    {"name": "tpe"},
]


def trials_of(job):
    return job.open().study.get_trials(deepcopy=False)


def test_workers_take_the_devices_in_turn(job, tmp_path, monkeypatch):
    taken = []

    class Context:
        SimpleQueue = list

        class Process:
            exitcode = 0

            def __init__(self, target, args):
                taken.append(args[0].device)

            def start(self):
                pass

            is_alive = terminate = join = start

    searched = replace(job(tmp_path), others=("cuda:1", "cuda:2"))
    monkeypatch.setattr(local, "_context", lambda job: Context)
    assert list(local._share(searched, searched.open(), 4, None)) == []
    assert taken == ["cpu", "cuda:1", "cuda:2", "cpu"]


def complete(trials):
    return [(trial.params, trial.values) for trial in trials if trial.state.name == "COMPLETE"]


@pytest.mark.parametrize(
    ("strategy", "most"),
    [(strategy, 3 if number else 10) for number, strategy in enumerate(STRATEGIES)],
    ids=[strategy["name"] for strategy in STRATEGIES],
)
def test_kills_change_nothing(job, child, tmp_path, strategy, most):
    undisturbed = job(tmp_path / "undisturbed", strategy=strategy)
    undisturbed.run(undisturbed.open(), None)
    killed, log = job(tmp_path / "killed", strategy=strategy), tmp_path / "log"
    generator, kills = random.Random(0), 0
    while True:
        process = child(killed, 0.01, log)
        if kills < most:
            before = lines(killed)
            while lines(killed) - before < generator.randrange(3, 12):
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.03))
            process.kill()
            kills += 1
        status = process.wait()
        if status == 0:
            break
        assert status == -9
    trials = trials_of(killed)
    assert kills == most
    assert complete(trials) == complete(trials_of(undisturbed))
    assert [trial.number for trial in trials] == list(range(len(trials)))
    measured = [trial for trial in trials if "seconds" in trial.user_attrs.get("result", {})]
    assert len(measured) == len({str(trial.params) for trial in measured})  # none twice
    assert len(log.read_text().splitlines()) <= len(measured) + kills


def lines(job):
    path = job.directory / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("shared", ["journal", "sqlite"])
def test_four_processes_share_a_study(job, child, tmp_path, shared):
    storage = f"sqlite:///{tmp_path}/study.db" if shared == "sqlite" else None
    log = tmp_path / "log"
    searches = []
    for number in range(4):
        folder = tmp_path / (str(number) if storage else "shared")
        searches.append(job(folder, trials=40, executor={"kind": "local", "storage": storage}))
    workers = [child(search, 0.02, log) for search in searches]
    assert [worker.wait() for worker in workers] == [0] * 4
    trials = trials_of(searches[0])
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 40}
    evaluated = log.read_text().splitlines()
    assert len(evaluated) == len(set(evaluated))
    assert len(evaluated) == sum("same_as" not in trial.user_attrs["result"] for trial in trials)
    assert len({trial.user_attrs.get("worker") for trial in trials} - {None}) == 4


def test_survivors_take_over_from_a_killed_peer(job, child, tmp_path):
    log = tmp_path / "log"
    search = job(trials=30)
    workers = [child(search, 0.03, log) for _ in range(3)]
    while lines(search) < 60:
        time.sleep(0.005)
    workers[0].kill()
    assert [worker.wait() for worker in workers] == [-9, 0, 0]
    trials = trials_of(search)
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 30
    assert not any(trial.state.name in ("RUNNING", "WAITING") for trial in trials)


def test_a_finished_search_evaluates_nothing_more(job):
    search = job(trials=5)
    for _ in range(2):
        search.run(search.open(), None)
    assert len(trials_of(search)) == 5


def test_no_trial_begins_after_the_deadline(job):
    search = job()
    search.run(search.open(), time.monotonic())
    assert trials_of(search) == []


@pytest.mark.slow
def test_workers_are_processes_that_share_the_work(job):
    search = job(trials=20, executor={"kind": "local", "workers": 2})
    search.run(search.open(), None)
    trials = trials_of(search)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 20}
    assert len({trial.user_attrs.get("worker") for trial in trials} - {None}) <= 2


@pytest.mark.slow
def test_what_stops_a_worker_is_raised_here(job, tmp_path, table):
    bad = tmp_path / "bad.csv"
    bad.write_text(table.read_text().replace(",90.0,", ",,"))
    space = {"name": "table", "options": {"path": str(bad), "decisions": ["a", "b", "c", "d"]}}
    search = job(space=space, trials=256, strategy={"name": "grid"}, executor={"kind": "local", "workers": 2})
    with pytest.raises(CompressError, match="the table has no top1"):
        search.run(search.open(), None)


WORKER = """
import pickle, sys
from importlib import import_module

for name in sys.argv[1:]:
    import_module(name)
before = set(sys.modules)
job = pickle.load(sys.stdin.buffer)
runner = job.open()
runner.run(runner.ask())
late = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(({"timm", "lightning_fabric"} & set(sys.modules)) | ({"torchvision", "onnx"} & late)))
"""


def test_a_worker_of_a_table_imports_nothing_for_training_and_all_spaces_beforehand(job):
    search = job(trials=3)
    found = subprocess.run(
        [sys.executable, "-c", WORKER, *preloaded(search)], input=pickle.dumps(search), capture_output=True
    )
    assert (found.returncode, found.stdout.split()) == (0, []), found.stderr.decode()
    trains = job(evaluator={"kind": "train", "train": {"epochs": 1}})
    assert set(preloaded(trains)) - set(preloaded(search)) >= {"timm", "lightning_fabric"}


SLOW = """
import pathlib, sys, time
from dataclasses import dataclass

UP = pathlib.Path(__file__).with_name("up")

@dataclass
class Job:
    device: str = "cpu"
    others: tuple = ()

class Runner:
    def planned(self):
        return 0

if sys.argv[0] == "-c":  # the server that workers are started from
    time.sleep(2)
    UP.touch()
"""
ENDED = """
import os, signal, sys, threading, time
import slow
from search.executors import local

def end(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    local.preloaded = lambda job: ["slow"]
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        list(local._share(slow.Job(), slow.Runner(), 2, None))
    except KeyboardInterrupt:
        print("ended")
    while not slow.UP.exists():  # a large process takes as long to end
        time.sleep(0.05)
    time.sleep(1)
"""


def test_workers_that_are_about_to_start_end_without_a_word(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "ended.py").write_text(ENDED)
    command = [sys.executable, tmp_path / "ended.py"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert (found.stdout, found.stderr) == ("ended\n", "")
