"""One run: its acts in order, each finished one recorded, and the report at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.bundle import Bundle, open_model, saved
from compress.core.atomic import replacing, write_json
from compress.core.environment import environment, settle_threads
from compress.core.errors import CompressError, NotWritten, reason_of
from compress.core.plain import plain_json
from compress.core.progress import say
from compress.core.registry import is_ours
from compress.report import write_report
from compress.runs.artifact import Artifact
from compress.runs.context import Context
from compress.runs.directory import RunDirectory, finish_stage, finished_stage, folder_unless_empty
from compress.runs.estimate import estimate, look_ahead, sentence
from compress.runs.rebuilt import check_rebuilt
from compress.runs.recipe import Recipe
from compress.runs.remarks import remarks
from compress.runs.replicated import replicated
from compress.runs.report_file import report_of
from compress.runs.resume import check_data, go_on
from compress.runs.spent import seconds_before
from compress.runs.stage import MODEL_FILE, Act, acts_of, compares
from compress.training.config import TrainerConfig
from compress.training.replicas import Replicas
from evaluators.datasets import Data
from evaluators.tasks.evaluation import try_meter

LONG_SECONDS = 60.0
"""A run that is estimated to take so long is tried out before: what fails late there costs more than a trial."""


class Runner:
    """A run of `recipe` in `directory`, which it holds until `close`.

    What trains does so on all `devices`, everything else on the first.
    `again` is the finished act that has to go on, if there is one; `act` says what is being done, `begun` is the folder
    of the act that was begun last in this process, `done` says whether there is one.
    """

    def __init__(
        self, recipe: Recipe, directory: RunDirectory, devices: Sequence[str], resume: bool, again: Act | None = None
    ) -> None:
        """Take down what is to be run; nothing is written yet."""
        self.recipe, self.directory, self.resume = recipe, directory, resume
        self.devices, self.device = devices, devices[0]
        self.again = again
        self.acts = acts_of(recipe)
        self.data: Data | None = None
        self.opened, self.done = False, False
        self.held = ExitStack()
        self.records: list[dict[str, Any]] = []
        self.act = "opening model and data"
        self.begun: Path | None = None

    def run(self) -> None:
        """Open model and data, run what is not finished, write the report."""
        self._begin()
        self._reach()
        artifact = Artifact(model=self.recipe.model)
        for act in self.acts:
            if act.stage.needs_model and (artifact.bundle is None or not self.opened):
                artifact = self._open(artifact, act)
            artifact = self._do(act, artifact)
        self._finish(artifact)

    def before(self, act: Act) -> Artifact:
        """Return what the acts before `act`, which are finished, have left, with its model built and data fitted."""
        artifact = Artifact(model=self.recipe.model)
        for each in self.acts[: act.number]:
            if each.stage.needs_model and (artifact.bundle is None or not self.opened):
                artifact = self._opened(artifact, each)[0]
            if each.number < act.number:
                record = finished_stage(self._place(each))
                assert record is not None
                self.records.append(record)
                artifact = each.stage.restore(artifact, each.config, self.context(each))
        return artifact

    def close(self) -> None:
        """Let other processes use the directory."""
        self.held.close()

    def _begin(self) -> None:
        size = getattr(self.recipe.data, "batch_size", None)
        if size is not None and any(isinstance(act.config, TrainerConfig) for act in self.acts):
            Replicas(0, len(self.devices)).slice(size)
        path = self.directory.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.held.callback(self.directory.let_go, self.directory.hold())
            if not self.resume:
                self.directory.log_file.unlink(missing_ok=True)  # of a run here that came to nothing
            if not self.directory.recipe.is_file():
                self.recipe.save(self.directory.recipe)
            else:
                go_on(self.recipe, self.directory, self.again)
            self.directory.log({"event": "resume" if self.resume else "start", "recipe": self.recipe.name})
        except OSError as error:
            raise NotWritten(f"--out  {path} cannot be written: {reason_of(error)}") from error

    def _reach(self) -> None:
        """Find what is not there that a later act needs, before time is spent on those before it."""
        for act in self.acts:
            if act.config is not None and finished_stage(self._place(act)) is None:
                self.act = f"reaching what {act.name} needs"
                act.stage.reach(act.config)
        self.act = "opening model and data"

    def _open(self, artifact: Artifact, first: Act) -> Artifact:
        """Return the artifact with its model built, and look at what lies ahead of `first`, the act that needs it."""
        self.act = "opening model and data"
        artifact, told = self._opened(artifact, first)
        for line in told:
            say(line)
        bundle = artifact.loaded
        if self.data is not None:
            check_data(self.data, self.directory, self.resume)
        self.directory.log({"event": "environment", **self.environment})
        ahead = self.acts[first.number - 1 :]
        self._check(ahead, bundle)
        self._estimate(ahead, bundle)
        return artifact

    def _opened(self, artifact: Artifact, first: Act) -> tuple[Artifact, Sequence[str]]:
        """Return the artifact with its model built, and sentences about that; fit the data to it."""
        model = artifact.model
        if artifact.bundle is not None:  # of an act that needed no model, so that no data were fitted to it yet
            model = saved(self._place(self.acts[first.number - 2]))
        if model is None:
            raise CompressError(f"{first.stage.where} needs a model, and the stages before it have left no bundle")
        opened = open_model(model, self.recipe.data, self.recipe.seed, self.recipe.task)
        settle_threads(opened.bundle.costs()["macs"] * getattr(self.recipe.data, "batch_size", 1))
        self.data, self.opened = opened.data, True
        return replace(artifact, bundle=opened.bundle, model=None), opened.told

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The machine and its software, with the threads that are used."""
        several = {"devices": list(self.devices)} if len(self.devices) > 1 else {}
        return environment(self.device) | several

    def _check(self, acts: list[Act], bundle: Bundle) -> None:
        """Find what is wrong with the first act that changes the model before time is spent on those before it.

        And whether the model has a loss, where one of them trains.
        """
        if not self.resume and any(isinstance(act.config, TrainerConfig) for act in acts):
            bundle.task.check_trainable(bundle.model)
            if not is_ours(bundle.task) and self.data is not None and self.data.test is not None:
                try_meter(bundle.model, self.data.test, self.data.task)
        first = next((act for act in acts if act.stage.changes_model), None)
        if first is not None and not self.resume and any(act.config is not None for act in acts[: acts.index(first)]):
            first.stage.check_model(first.config, bundle)

    def _estimate(self, acts: list[Act], bundle: Bundle) -> None:
        """Say how long the acts that are left will take."""
        left = [act for act in acts if finished_stage(self._place(act)) is None]
        self.act = "estimating the time"
        ahead = look_ahead(self.acts, bundle, self.data, self.recipe, self.device)
        parts = estimate(left, ahead, len(self.devices))
        for line in remarks(self.recipe, left, self.device):
            say(line)
        if parts:
            say(sentence(parts))
            self.directory.log({"event": "estimate", "seconds": {name: round(value, 1) for name, value in parts}})
        if not self.resume and sum(value for _, value in parts) >= LONG_SECONDS:
            for act in left:
                if act.config is not None:
                    act.stage.try_out(act.config, bundle)

    def _place(self, act: Act) -> Path:
        return self.directory.stage(act.number, act.name)

    def _do(self, act: Act, artifact: Artifact) -> Artifact:
        """Do `act`, or take its result where it is finished."""
        place, context = self._place(act), self.context(act)
        record = finished_stage(place)
        self.act = act.name
        if record is not None and self.done:  # its folder was left where that of an earlier act was deleted
            say(f"{act.name}: stands on what was run again, so it is, too")
            (place / "metrics.json").unlink()
            shutil.rmtree(place)
            record = None
        if record is not None:
            say(f"{act.name}: finished before")
            self.records.append(record)
            return act.stage.restore(artifact, act.config, context)
        self.done, self.begun = True, place
        again = self.again is not None and self.again.number == act.number
        before = seconds_before(self.directory.log_file, act.number, act.name, again) if self.resume else 0.0
        marked = {"goes_on": True} if again else {}
        self.directory.log({"event": "stage", "stage": act.name, "number": act.number, **marked})
        say(f"[{act.number}/{self.acts[-1].number}] {act.name}")
        started = time.monotonic()
        trains = isinstance(act.config, TrainerConfig)
        devices = self.devices if trains else [self.device]
        with folder_unless_empty(place), replicated(self.directory.path, act.number, devices):
            artifact = act.stage.run(artifact, act.config, context)
        if not isinstance(artifact, Artifact):
            raise CompressError(f"{act.stage.where} gave back {type(artifact).__name__}, which is no Artifact")
        if artifact.bundle is not None:
            step = {"stage": act.name, **({} if act.config is None else act.config.model_dump(mode="json"))}
            artifact.bundle.provenance = [*artifact.bundle.provenance, step]
            artifact.bundle.metrics = plain_json(artifact.bundle.metrics, f"{act.name}: metrics")
            artifact.bundle.save(place / "bundle")
            if not all(map(is_ours, (act.stage, act.config))):
                check_rebuilt(artifact.bundle, place / "bundle", act.name)
        seconds = before + time.monotonic() - started
        metrics = plain_json(artifact.metrics, f"{act.name}: metrics")
        details = _checked_details(context.details, act.name)
        finish_stage(place, act.name, seconds, details, metrics)
        for clear_up in context.afterwards:
            clear_up()
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
        self.records.append({**details, "name": act.name, "seconds": seconds, "metrics": metrics})
        self.directory.log({"event": "stage_end", "stage": act.name, "seconds": seconds, "metrics": metrics})
        return artifact

    def context(self, act: Act) -> Context:
        """Return what `act` has at hand."""
        first = next((self._place(other) for other in self.acts if other.stage.makes_baseline), self._place(act))
        return Context(
            recipe=self.recipe,
            data=self.data,
            device=self.device,
            run=self.directory.path,
            directory=self._place(act),
            resume=self.resume,
            log=lambda event: self.directory.log({**event, "stage": act.name, "number": act.number}),
            compares=compares(self.acts),
            baseline=lambda: Bundle.load(first),
            baseline_onnx=first / MODEL_FILE,
            model_file=self.directory.model,
            step=act.step,
            earlier=self.records,
            others=self.devices[1:],
        )

    def _finish(self, artifact: Artifact) -> None:
        """Write the winner as bundle and ONNX and the report, the report last."""
        self.act = "writing the report"
        if artifact.bundle is not None:
            artifact.bundle.save(self.directory.bundle)
        if artifact.onnx is not None and artifact.onnx != self.directory.model:
            with replacing(self.directory.model) as file:
                shutil.copyfile(artifact.onnx, file)
        write_json(self.directory.report, report_of(self.recipe, self.acts, self.records, self.environment))
        write_report(self.directory.path)
        self.directory.log({"event": "end"})


def _checked_details(details: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what a stage tells of itself as JSON has it; CompressError, naming the key, where that cannot be."""
    found: dict[str, Any] = plain_json(details, f"{name}: context.details")
    notes = found.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise CompressError(f"{name}: context.details.notes is {notes!r:.80}; allowed: a list of sentences")
    return found
