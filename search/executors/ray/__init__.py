"""Trials as Ray Tune trials, on a cluster or on one that lives as long as the search."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from compress.core.errors import InputError
from evaluators.latency.targets.ray import import_ray
from search.executors.executor import ExecutorBase, executors

if TYPE_CHECKING:
    from search.job import SearchJob
    from search.runner import Runner

CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 * 2**20
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's swallows the interrupt and returns as if the search were complete
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@executors.register("ray")
class RayExecutor(ExecutorBase):
    """Actors of a Ray cluster."""

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        None, description="auto or host:port of a running cluster; null: one on this machine, for this search"
    )
    workers: int | None = Field(None, ge=1, description="trials at the same time; null: as many as there is room for")
    cpus: float = Field(1.0, ge=0, description="CPUs per trial; a share such as 0.5 is possible")
    gpus: float = Field(0.0, ge=0, description="GPUs per trial; a share such as 0.25 is possible")
    resources: dict[str, float] = Field({}, description="custom resources per trial, such as {big_memory: 1}")
    batch: int = Field(1, ge=1, description="architectures per Ray trial; more for evaluations of under a second")
    failures: int = Field(3, ge=0, description="how often a trial whose process or node died is tried again")
    storage: str | None = Field(
        None, description="SQLAlchemy URL of the study's database; null: study.journal in the run, on this machine"
    )
    checkpoints: str | None = Field(
        None, description="folder or URI that all nodes reach, for Ray's own state; null: in the run"
    )

    @field_validator("address")
    @classmethod
    def _no_client(cls, address: str | None) -> str | None:
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                "Ray Client would move the search to the head node and away from its run directory; start it on a node "
                "of the cluster with address: auto, for example by ray job submit"
            )
        return address

    def check(self) -> None:
        """Raise InputError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise InputError("search.executor.kind: ray is not installed: pip install 'compress[ray]'; or name local")

    def run(self, job: SearchJob, runner: Runner, deadline: float | None) -> None:
        """Work on the cluster: the study is asked and told in this process only, actors evaluate architectures."""
        if job.device.startswith("cuda") and not self.gpus:
            raise InputError(
                "search.executor.gpus: 0, but trials are to run on a GPU; give a share such as 0.25, or --device cpu"
            )
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong is raised here, in one sentence
        with _cluster(self):
            from search.executors.ray.tune import tune_study

            tune_study(job, runner, deadline)

    def demand(self) -> dict[str, float]:
        """Return what one trial takes of the cluster."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.resources}


@contextmanager
def _cluster(config: RayExecutor) -> Iterator[None]:
    """Connect to the cluster, or start one; one that this process is connected to already is used as it is."""
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray, config)
    try:
        _check_room(config)
        yield
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, config: RayExecutor) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if config.address is not None:
        _knock(config.address)
        try:
            ray.init(address=config.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"search.executor.address: cannot connect to {config.address!r}: {error}") from error
        return
    cores = max(os.cpu_count() or 1, math.ceil(config.cpus * (config.workers or 1)))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)


def _knock(address: str) -> None:
    """Raise InputError where nothing listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"search.executor.address: no Ray cluster answers at {address!r} ({error}); "
            "allowed is host:port of a head node (ray start --head prints it), or auto on a node of the cluster"
        ) from error


def room(config: RayExecutor) -> int:
    """Return how many trials the cluster has room for at the same time."""
    ray = import_ray()
    wanted = _wanted(config)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not wanted:
        return max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    return sum(min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items()) for node in nodes)


def _wanted(config: RayExecutor) -> dict[str, float]:
    return {name: amount for name, amount in config.demand().items() if amount}


def _check_room(config: RayExecutor) -> None:
    if room(config):
        return
    ray = import_ray()
    shown = "; ".join(
        ", ".join(
            f"{name}: {amount:g}" for name, amount in sorted(node.items()) if ":" not in name and "memory" not in name
        )
        for node in (node["Resources"] for node in ray.nodes() if node["Alive"])
    )
    raise InputError(
        f"search.executor: no node of the cluster has what a trial takes, {_wanted(config)}; the nodes have {shown}"
    )
