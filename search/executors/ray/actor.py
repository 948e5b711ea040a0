"""An actor of a search on Ray Tune: evaluates the architectures that the driver hands out."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from compress.core.errors import CompressError, InputError
from compress.core.progress import set_quiet
from search.executors.ray import RayExecutor
from search.job import SearchJob
from search.judge import evaluate


class Evaluation(tune.Trainable):
    """An actor: evaluates batches of architectures, one after the other.

    A step lasts until the evaluator has something to report, or is done; the evaluator waits in a thread meanwhile for
    the driver's word whether to go on.
    """

    def setup(self, config: dict[str, Any], job: SearchJob, folder: str) -> None:  # type: ignore[override]
        """Open the space, the data and the evaluator, once for all batches of this actor."""
        set_quiet(True)
        self.folder = folder
        self._begin(config)
        assert isinstance(job.config.executor, RayExecutor)
        device = "cuda:0" if job.config.executor.gpus else job.device
        self.judge, self.seed = replace(job, device=device).judge(), job.seed

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next batch."""
        self._end()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        with suppress(OSError):
            os.chdir(self.folder)  # paths in a recipe are relative to where the search was started
        self.batch, self.index = config["batch"], 0
        self.thread: threading.Thread | None = None
        self.said: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self.answers: queue.Queue[bool] = queue.Queue()

    def step(self) -> dict[str, Any]:
        """Return what the evaluator reports next (value, step), its outcome, or an error of the user's."""
        if self.thread is None:
            self.started = time.perf_counter()
            self.thread = threading.Thread(target=self._evaluate, args=(self.batch[self.index],), daemon=True)
            self.thread.start()
        else:
            self.answers.put(False)
        said = self.said.get()
        if isinstance(said, BaseException):
            raise said
        result = {"index": self.index, "seconds": time.perf_counter() - self.started, **said}
        if "value" not in said:
            self.thread = None
            self.index += 1
            result["done"] = self.index == len(self.batch)
            result[SHOULD_CHECKPOINT] = not result["done"]
        return result

    def _evaluate(self, entry: dict[str, Any]) -> None:
        try:
            arch = self.judge.space.check(entry["choices"])
            self.said.put({"outcome": asdict(evaluate(self.judge, arch, entry["free"], self._report))})
        except CompressError as error:
            self.said.put({"error": str(error), "input": isinstance(error, InputError)})
        except BaseException as error:
            self.said.put(error)

    def _report(self, step: int, value: float) -> bool:
        self.said.put({"step": step, "value": value})
        return self.answers.get()

    def _end(self) -> None:
        """Stop an evaluation that waits for the driver's word."""
        if self.thread is not None:
            self.answers.put(True)
            self.thread.join()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Note how far the batch is."""
        (Path(checkpoint_dir) / "batch.json").write_text(json.dumps({"index": self.index}))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on after the last architecture that was done."""
        self.index = json.loads((Path(checkpoint) / "batch.json").read_text())["index"]
