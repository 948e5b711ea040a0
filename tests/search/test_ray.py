"""Searches on a Ray cluster of two nodes on this machine; the second carries the labels `big` and `pi4`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.core.errors import CompressError, InputError
from compress.testing.targets import check_target
from evaluators.candidates.evaluator import Stopped
from evaluators.latency.measure import LatencyConfig, record
from search.config import PrunerConfig
from search.job import SearchJob
from search.judge import Judge
from search.study import JOURNAL, open_study

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'compress[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one cluster, on one of the processes


@dataclass(frozen=True)
class WatchedJob(SearchJob):
    """A search whose evaluations leave a line each: process, node, architecture; `act` may do something before."""

    act: Callable[[Any, Any], None] | None = None

    def judge(self) -> Judge:
        judge = super().judge()
        plain = judge.evaluator.evaluate

        def evaluate(arch: Any, wanted: Any, seed: int, report: Any = None) -> Any:
            if self.act is not None:
                self.act(arch, report)
            node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "driver"
            with (self.directory / "log").open("a") as file:
                file.write(f"{os.getpid()} {node} {arch.to_json()}\n")
            return plain(arch, wanted, seed, report)

        judge.evaluator.evaluate = evaluate  # type: ignore[method-assign]
        return judge


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # by default 15: starved by what else runs
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **SMALL})
    made.add_node(num_cpus=1, resources={"big": 1, "pi4": 1, "spare": 1}, **SMALL)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture
def watched(job: Any, cluster: Any) -> Callable[..., WatchedJob]:
    def make(act: Any = None, executor: Any = None, **section: Any) -> WatchedJob:
        plain = job(executor={"kind": "ray", **(executor or {})}, **section)
        given = {each.name: getattr(plain, each.name) for each in fields(SearchJob)}
        return WatchedJob(**given, act=act)

    return make


def search(job: SearchJob) -> list[Any]:
    runner = job.open()
    runner.revive()
    job.run(runner, None)
    return runner.study.get_trials(deepcopy=False)


def log(job: SearchJob) -> list[list[str]]:
    path = job.directory / "log"
    return [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []


def states(trials: list[Any]) -> Counter[str]:
    return Counter(trial.state.name for trial in trials)


def test_one_worker_finds_what_a_local_search_finds(watched, job, tmp_path):
    local = job(tmp_path / "local")
    local.run(local.open(), None)
    here = [(trial.params, trial.value) for trial in local.open().study.trials]
    on_ray = watched(executor={"workers": 1})
    assert [(trial.params, trial.value) for trial in search(on_ray)] == here
    assert len({process for process, _, _ in log(on_ray)}) == 1  # the actor was reused
    assert search(on_ray)[-1].number == 29  # a finished search does nothing more


def test_batches_and_several_actors_evaluate_each_network_once(watched):
    job = watched(executor={"workers": 2, "batch": 4, "cpus": 0.5}, trials=40)
    trials = search(job)
    assert states(trials) == {"COMPLETE": 40}
    evaluated = [arch for _, _, arch in log(job)]
    assert len(evaluated) == len(set(evaluated))
    assert len(evaluated) == sum("same_as" not in trial.user_attrs["result"] for trial in trials)


def test_a_resource_that_no_node_has_is_named(watched):
    with pytest.raises(InputError, match=r"'tpu': 1.*the nodes have.*big: 1.*"):
        search(watched(executor={"resources": {"tpu": 1}}))


def test_an_address_where_nothing_listens_is_refused_at_once(job, cluster):
    from search.executors.ray import RayExecutor, _connect

    with pytest.raises(InputError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'.*ray start --head"):
        _connect(ray, RayExecutor(address="127.0.0.1:1"))


def test_a_gpu_search_without_a_share_of_one_is_refused(watched):
    job = watched()
    object.__setattr__(job, "device", "cuda:0")
    with pytest.raises(InputError, match=r"search\.executor\.gpus: 0"):
        search(job)


def test_a_process_that_dies_is_tried_again_after_what_its_batch_had_done(watched, tmp_path):
    marker = tmp_path / "died"

    def die_once(arch, report):
        if arch["a"] == 3 and not marker.exists():
            marker.touch()
            os._exit(1)

    job = watched(die_once, executor={"workers": 1, "batch": 30})
    assert states(search(job)) == {"COMPLETE": 30}
    evaluated = [arch for _, _, arch in log(job)]
    assert marker.exists() and len(evaluated) == len(set(evaluated))


def test_a_process_that_always_dies_ends_the_search_and_a_resumed_one_goes_on(watched):
    def die(arch, report):
        if arch["a"] == 3:
            os._exit(1)

    job = watched(die, executor={"workers": 1, "failures": 1})
    with pytest.raises(CompressError, match="failed 2 times on Ray"):
        search(job)
    (failed,) = [trial for trial in job.open().study.trials if trial.state.name == "FAIL"]
    assert failed.user_attrs["result"]["error"]
    object.__setattr__(job, "act", None)
    assert states(search(job)) == {"FAIL": 1, "COMPLETE": 30}


def test_an_error_of_the_users_is_raised_as_it_is(watched):
    def complain(arch, report):
        raise InputError("the table has no top1 for it")

    with pytest.raises(InputError, match="the table has no top1 for it"):
        search(watched(complain, executor={"workers": 1}))


def test_the_pruner_stops_a_trial_and_its_batch_goes_on(watched):
    def curve(arch, report):
        for step in range(1, 6):
            if report(step, float(arch["a"])):
                raise Stopped(step, float(arch["a"]))

    job = watched(curve, executor={"workers": 1, "batch": 5}, trials=20)
    pruner = PrunerConfig(name="median", options={"n_startup_trials": 2})
    object.__setattr__(job, "config", job.config.model_copy(update={"pruner": pruner}))  # tables have no curves
    trials = search(job)
    assert set(states(trials)) == {"COMPLETE", "PRUNED"} and len(trials) == 20
    assert all(len(trial.intermediate_values) < 5 for trial in trials if trial.state.name == "PRUNED")


@pytest.fixture
def model(tmp_path):
    import torch

    path = tmp_path / "model.onnx"
    torch.onnx.export(torch.nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),), path, dynamo=False)
    return path


def on(label: str) -> LatencyConfig:
    return LatencyConfig.model_validate({"target": {"ray": label, "timeout": 60}, "runs": 3, "seconds": 0})


def test_latency_is_measured_on_the_node_with_the_label(cluster, model):
    assert record(model, on("pi4")).min > 0
    check_target(on("pi4").target)
    with pytest.raises(InputError, match=r"ray:pi5: no node carries .* there are: big, pi4, spare"):
        record(model, on("pi5"))


def test_trials_run_where_their_custom_resource_is_and_measure_on_the_node_with_the_label(watched, model):
    def measure(arch, report):
        record(model, on("pi4"))

    job = watched(measure, executor={"workers": 1, "resources": {"big": 0.5}, "cpus": 0.5}, trials=3)
    assert states(search(job)) == {"COMPLETE": 3}
    (label,) = [node["NodeID"] for node in ray.nodes() if "big" in node["Resources"] and node["Alive"]]
    assert {node for _, node, _ in log(job)} == {label}


def test_our_samplers_run_inside_optuna_search(cluster, tmp_path):
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from search.strategies.regularized_evolution import RegularizedEvolutionSampler
    from spaces.registry import create

    space = create("nats_size", {})
    sampler = RegularizedEvolutionSampler(space.distributions(), population=4, sample=2, seed=0)
    tuner = tune.Tuner(
        tune.with_resources(lambda config: {"score": float(sum(config.values()))}, {"cpu": 0.5}),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(space.distributions(), metric="score", mode="max", sampler=sampler), num_samples=8
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert len(results) == 8 and not results.errors


@pytest.mark.parametrize(
    ("statuses", "chosen"),
    [
        ("PP", 1),  # nothing runs: the first place is being filled, and what is beyond it would wait
        ("TRPPP", 3),  # the actor of the ended trial goes on with the one for which no actor is being started
        ("TTRRRP", 5),
        ("TRP", 2),  # nothing else is left to do
        ("TT", None),
    ],
)
def test_a_free_actor_goes_to_a_trial_for_which_none_is_being_started(monkeypatch, statuses, chosen):
    from ray.tune.experiment import Trial

    from search.executors.ray.driver import Places

    names = {"P": Trial.PENDING, "R": Trial.RUNNING, "T": Trial.TERMINATED}
    trials = [SimpleNamespace(status=names[each]) for each in statuses]
    monkeypatch.setattr("search.executors.ray.driver._live", {"toy": SimpleNamespace(places=lambda: 3)})
    found = Places("toy").choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials))
    assert found is (None if chosen is None else trials[chosen])


DRIVER = """
import json, sys, time
from pathlib import Path

from search.config import SearchConfig
from search.config import PrunerConfig
from search.job import SearchJob

class Slow(SearchJob):
    def judge(self):
        judge = super().judge()
        plain = judge.evaluator.evaluate
        judge.evaluator.evaluate = lambda *given: time.sleep(0.2) or plain(*given)
        return judge

config = SearchConfig.model_validate(json.loads(sys.argv[1]))
job = Slow(config, None, None, "toy", 0, "cpu", Path(sys.argv[2]))
runner = job.open()
runner.revive()
job.run(runner, None)
"""


def test_a_killed_driver_is_resumed_with_the_same_result(job, cluster, tmp_path, monkeypatch):
    local = job(tmp_path / "local")
    local.run(local.open(), None)
    killed = job(tmp_path / "ray", executor={"kind": "ray", "address": cluster.address, "workers": 1})
    command = [sys.executable, "-c", DRIVER, killed.config.model_dump_json(), str(killed.directory)]
    driver = subprocess.Popen(command)
    while driver.poll() is None and len(values(killed)) < 8:
        time.sleep(0.1)
    driver.kill()
    assert driver.wait() == -9
    assert list(killed.directory.glob("ray/experiment_state-*"))  # Tune's own record
    monkeypatch.setattr("search.executors.ray.tune._new_tuner", None)  # Tuner.restore is enough
    assert search(killed)[-1].state.name == "COMPLETE"
    assert values(killed) == values(local)
    assert not (killed.directory / "ray").exists()


def values(job: SearchJob) -> list[Any]:
    if not (job.directory / JOURNAL).exists():
        return []
    trials = open_study(job.name, None, job.directory, ["maximize"]).get_trials(deepcopy=False)
    return [(trial.params, trial.value) for trial in trials if trial.state.name == "COMPLETE"]


def test_a_search_survives_the_loss_of_a_node(watched, cluster, tmp_path):
    node = cluster.add_node(num_cpus=1, resources={"spare": 1}, **SMALL)
    lost, done = node.node_id, tmp_path / "done"
    at_work, gone = tmp_path / "at_work", tmp_path / "gone"

    def act(arch, report):
        """Evaluate two networks on the node that will be lost and hang in the third; elsewhere wait for the loss."""
        if ray.get_runtime_context().get_node_id() != lost:
            wait_for(gone)
        elif done.exists() and len(done.read_text()) == 2:
            at_work.touch()
            time.sleep(PATIENCE)
        else:
            with done.open("a") as file:
                file.write(".")

    def kill() -> None:
        wait_for(at_work)
        cluster.remove_node(node, allow_graceful=False)
        gone.touch()

    job = watched(act, executor={"resources": {"spare": 1}, "cpus": 0.5}, trials=40)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    trials = search(job)
    killer.join()
    assert states(trials) == {"COMPLETE": 40}
    evaluated = Counter(node for _, node, _ in log(job))
    assert evaluated.pop(lost) == 2
    assert len(evaluated) == 1


PATIENCE = 240.0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} within {PATIENCE:g} s"
        time.sleep(0.05)
