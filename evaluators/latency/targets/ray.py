"""A node of a Ray cluster as the place where latency is measured."""

from __future__ import annotations

import logging
import subprocess
from typing import Any, Literal

from pydantic import Field

from compress.core.errors import CompressError, InputError
from evaluators.latency.targets import TargetBase, targets


@targets.register("ray")
class RayTarget(TargetBase):
    """A node of a Ray cluster that carries a resource label; its Python needs numpy and onnxruntime."""

    kind: Literal["ray"] = "ray"
    ray: str = Field(min_length=1, description="the label, as in ray start --resources '{\"pi4\": 1}'")
    address: str | None = Field(
        None, description="auto or host:port of the cluster; null: the one that the search runs on, or else auto"
    )
    timeout: float = Field(1800.0, gt=0, description="seconds until a silent node is given up, waiting included")

    @property
    def shown(self) -> str:
        """Return ray:LABEL."""
        return f"ray:{self.ray}"

    def run(self, program: bytes) -> subprocess.CompletedProcess[bytes]:
        """Run a Python program on the node, one at a time.

        Raises:
            InputError: Ray is not installed, there is no cluster, or no node with the label.
            CompressError: the node did not answer in time, or was lost.
        """
        ray = _connected(self)
        _check_label(ray, self)

        def run(program: bytes) -> tuple[int, bytes, bytes]:  # within this function, so that the node needs no compress
            import os
            import subprocess
            import sys

            environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
            environment.pop("OMP_NUM_THREADS", None)  # Ray's, for a task that asks for no CPU
            done = subprocess.run(
                [sys.executable, "-P", "-"], input=program, capture_output=True, check=False, env=environment
            )
            return done.returncode, done.stdout, done.stderr

        options = {
            "resources": {self.ray: 1},  # a whole unit, so that measurements do not disturb each other
            "num_cpus": 0,  # the trial that waits for the measurement may hold the node's only one
            "scheduling_strategy": "DEFAULT",  # not within what a trial of Ray Tune has reserved for itself
            "max_retries": 1,
        }
        task = ray.remote(**options)(run).remote(program)
        try:
            code, out, err = ray.get(task, timeout=self.timeout)
        except ray.exceptions.GetTimeoutError as error:
            ray.cancel(task, force=True)
            raise CompressError(f"latency target {self.shown} did not answer within {self.timeout:g} s") from error
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise CompressError(f"latency target {self.shown} was lost: {reason}") from error
        return subprocess.CompletedProcess([self.shown], code, out, err)


def import_ray() -> Any:
    """Return the module ray; raises InputError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InputError("ray is not installed; pip install 'compress[ray]'") from error
    return ray


def _connected(target: RayTarget) -> Any:
    ray = import_ray()
    if not ray.is_initialized():
        try:
            ray.init(address=target.address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"latency target {target.shown}: no Ray cluster to connect to: {error}") from error
    return ray


def _check_label(ray: Any, target: RayTarget) -> None:
    built_in = {"CPU", "GPU", "memory", "object_store_memory"}
    found = {label: amount for label, amount in ray.cluster_resources().items() if ":" not in label}
    if found.get(target.ray, 0) < 1:
        labels = ", ".join(sorted(set(found) - built_in)) or "none"
        raise InputError(
            f"latency target {target.shown}: no node carries a whole unit of that label; there are: {labels}"
        )
