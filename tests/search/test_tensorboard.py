from __future__ import annotations

import os
import struct
import time
from collections import defaultdict
from pathlib import Path

import pytest

from compress.core.errors import InputError
from search import tensorboard
from search.outcome import evaluated
from search.tensorboard import logged, writer_class

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
TWO = {"maximize": ["top1"], "minimize": ["macs"]}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by tag, in the order in which they are in the folder's only event file."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, found, place = path.read_bytes(), defaultdict(list), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            found[value.tag].append((event.step, value.simple_value))
        place += length + 16
    return found


def search(job, folder: Path, runner=None):
    """Run what is left of a search with logs; return its study."""
    runner = runner or job.open()
    runner.revive()
    with logged(runner.study, job.config.objective.names, folder):
        job.run(runner, None)
    return runner.study


def check(found, study, names) -> None:
    """Each evaluated trial is there once, with its figures; one that failed as its process was killed has none."""
    trials = evaluated(study)
    assert found["trial"] == [(step, trial.number) for step, trial in enumerate(trials, 1)]
    steps = {step: trial.values for step, trial in enumerate(trials, 1) if trial.state.name == "COMPLETE"}
    for place, name in enumerate(names):
        values = [values[place] for values in steps.values()]
        assert [step for step, _ in found[f"objective/{name}"]] == list(steps)
        assert [value for _, value in found[f"objective/{name}"]] == pytest.approx(values)
        best = max if study.directions[place].name == "MAXIMIZE" else min
        so_far = [best(values[: end + 1]) for end in range(len(values))]
        assert [value for _, value in found[f"best/{name}"]] == pytest.approx(so_far)
        assert found[f"metrics/{name}"] == found[f"objective/{name}"]


def test_every_trial_is_written_once_with_its_figures_and_the_best_so_far(job, tmp_path):
    toy = job(objective=TWO, strategy={"name": "random"})
    study = search(toy, tmp_path / "tensorboard")
    check(scalars(tmp_path / "tensorboard"), study, ("top1", "macs"))


def test_other_processes_trials_are_written_too(job, tmp_path):
    toy = job(executor={"kind": "local", "workers": 2}, trials=12)
    study = search(toy, tmp_path / "tensorboard")
    check(scalars(tmp_path / "tensorboard"), study, ("top1",))


def test_a_search_that_was_killed_and_resumed_has_every_trial_once(job, tmp_path):
    toy, folder = job(), tmp_path / "tensorboard"
    child = os.fork()
    if not child:
        runner = toy.open()
        with logged(runner.study, ("top1",), folder):
            for _ in range(9):
                runner.run(runner.ask())
            runner.ask()
            os._exit(1)  # as if killed: nothing is closed
    os.waitpid(child, 0)
    study = search(toy, folder)
    check(scalars(folder), study, ("top1",))
    assert sum(trial.state.name == "COMPLETE" for trial in study.trials) == 30


def test_trials_are_written_while_the_search_goes_on(job, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "LOOK_SECONDS", 0.01)
    toy, folder = job(), tmp_path / "tensorboard"
    runner = toy.open()
    with logged(runner.study, ("top1",), folder):
        runner.run(runner.ask())
        until = time.monotonic() + 10
        while not scalars(folder)["trial"] and time.monotonic() < until:
            time.sleep(0.01)
        assert scalars(folder)["trial"] == [(1, 0)]
        toy.run(runner, None)
    check(scalars(folder), runner.study, ("top1",))


def test_refused_trials_are_left_out_and_stopped_ones_have_no_value(job, tmp_path):
    toy = job(objective={"constraints": {"macs": {"max": 50}, "top1": {"min": 89}}}, strategy={"name": "random"})
    study = search(toy, tmp_path / "tensorboard")
    found = scalars(tmp_path / "tensorboard")
    states = [trial.state.name for trial in evaluated(study)]
    assert len(found["trial"]) == len(states) < len(study.trials)
    assert len(found["objective/top1"]) == states.count("COMPLETE") < len(states)


def test_without_a_package_for_it_that_is_said_before_anything_is_done(job, tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(tensorboard.importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"search\.tensorboard: .*pip install tensorboard"):
        writer_class()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_on_ray_the_driver_writes(job, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'compress[ray]'")
    toy = job(executor={"kind": "ray", "workers": 2}, trials=6)
    study = search(toy, tmp_path / "tensorboard")
    check(scalars(tmp_path / "tensorboard"), study, ("top1",))
