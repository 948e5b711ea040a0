"""Run a recipe: its stages in order, each finished one recorded, and the report at the end."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.bundle import Bundle, Opened, open_model
from compress.core.atomic import write_json
from compress.core.environment import choose_device, environment, settle_threads
from compress.core.errors import CompressError, InputError, NotWritten, in_one_line, reason_of
from compress.core.progress import say
from compress.prune.bundles import check_pruning
from compress.report import summary_of, write_report
from compress.runs.directory import RunDirectory, RunInUse, discard, finish_stage, finished_stage, open_run
from compress.runs.estimate import estimate, sentence
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.resume import check_same, go_on
from compress.runs.stages import METRICS, MODEL_FILE, Context, Stage, stages_of
from evaluators.cost import count_macs
from spaces.zoo import ModelConfig


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory, the contents of report.json and the line that sums it up."""

    directory: Path
    report: dict[str, Any]
    summary: str

    def load(self) -> Any:
        """Return the winner as a module in eval mode."""
        return Bundle.load(self.directory).model


def run(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    resume_hint: str = "the same call with resume=True",
) -> RunResult:
    """Run all stages of a recipe in a directory of their own and return the result.

    Args:
        recipe: a file, the name of a shipped recipe, or a loaded one.
        overrides: dotted key -> value, such as `{"prune.budget.macs": 0.5}`; only with a file or name.
        out: the run directory; by default `runs/<name>`.
        resume: go on with an interrupted run of the same recipe in `out`; finished stages are not repeated. What may
            have grown in the recipe meanwhile is in `compress.runs.resume`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        resume_hint: how to go on, told to the user when the run is interrupted or fails.

    Raises:
        InputError: the recipe, its files or the directory are wrong; nothing half-done is left behind.
        CompressError: a stage failed; says where the log is and how to go on.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, flag="overrides")
    elif overrides:
        raise InputError("overrides  give them with a recipe's file or name; this recipe is loaded already")
    chosen = choose_device(device)
    directory, new = open_run(recipe, None if out is None else Path(out), resume)
    search_too = not new and check_same(recipe, directory)
    if directory.report.is_file() and not search_too:
        say(f"{directory.path} holds the finished run")
        return _result(directory)
    runner = _Runner(recipe, directory, chosen, resume and not new, search_too)
    try:
        return runner.run()
    except RunInUse:
        raise
    except KeyboardInterrupt as error:
        _note(directory, {"event": "interrupted"})
        raise KeyboardInterrupt(f"interrupted; go on with: {resume_hint}") from error
    except InputError as error:
        if new and not directory.holds_work():
            discard(directory)
        elif isinstance(error, NotWritten):  # the recipe is right, and work is done: a disk that is full by now
            raise _failed(directory, runner.act, error, resume_hint) from error
        raise recipe.located(error) from error
    except (Exception, SystemExit) as error:  # whatever a stage, a library or the user's module raises
        raise _failed(directory, runner.act, error, resume_hint) from error
    finally:
        runner.close()


def _failed(directory: RunDirectory, act: str, error: BaseException, resume_hint: str) -> CompressError:
    """Log the traceback; return what happened, where the log is and how to go on."""
    what = in_one_line(error)
    _note(directory, {"event": "error", "stage": act, "error": what, "trace": traceback.format_exc()})
    return CompressError(f"{act} failed: {what}; log: {directory.log_file}; go on with: {resume_hint}")


def _note(directory: RunDirectory, event: dict[str, Any]) -> None:
    """Log how a run ended; a log that cannot be written, as on a full disk, does not hide why."""
    with suppress(OSError):
        directory.log(event)


class _Runner:
    """One run: what its stages share."""

    def __init__(
        self, recipe: Recipe, directory: RunDirectory, device: str, resume: bool, search_too: bool = False
    ) -> None:
        self.recipe, self.directory, self.device, self.resume = recipe, directory, device, resume
        self.search_too = search_too
        self.stages = stages_of(recipe)
        self.held = ExitStack()
        self.records: list[dict[str, Any]] = []
        self.searched: dict[str, Any] | None = None
        self.act = "opening model and data"

    def run(self) -> RunResult:
        """Open model and data, run what is not finished, write the report."""
        self._begin()
        model = self._searched() if self.recipe.search is not None else self.recipe.given_model
        if model is None:
            return self._finish_search()
        self.act = "opening model and data"
        opened = open_model(model, self.recipe.data, self.recipe.seed)
        if opened.load_report is not None:
            say(opened.load_report.summary())
        macs = count_macs(opened.bundle.model, opened.bundle.example_inputs())
        settle_threads(macs * getattr(self.recipe.data, "batch_size", 1))
        self.environment = environment(self.device)
        self.directory.log({"event": "environment", **self.environment})
        self._check(opened.bundle)
        self._estimate(opened)
        bundle = opened.bundle
        for stage in self.stages:
            bundle = self._stage(stage, bundle, opened)
        self._finish(bundle)
        return _result(self.directory)

    def _searched(self) -> ModelConfig | None:
        """Return the winner of the search as the model of the stages that follow; None where it cannot be built."""
        from compress.runs.search import STAGE, search_stage

        self.act = STAGE
        say(f"[1/{len(self.stages) + 1}] {STAGE}")
        place = self.directory.stage(1, STAGE)
        result = search_stage(self.recipe, self.directory.path, place, self.device, self.directory.log)
        self.searched = result.record
        return result.winner

    def _finish_search(self) -> RunResult:
        """Write the report of a search over published results, which leaves no model behind."""
        self.act = "writing the report"
        self.environment = environment(self.device)
        write_json(self.directory.report, self._report())
        write_report(self.directory.path)
        self.directory.log({"event": "end"})
        return _result(self.directory)

    def _check(self, bundle: Bundle) -> None:
        """Find what is wrong with the prune section before time is spent on training."""
        if self.recipe.train is not None and not self.resume:
            for config in self.recipe.prunings[:1]:
                check_pruning(bundle, config)

    def close(self) -> None:
        """Let other processes use the directory."""
        self.held.close()

    def _begin(self) -> None:
        path = self.directory.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.held.callback(self.directory.let_go, self.directory.hold())
            if not self.directory.recipe.is_file():
                self.recipe.save(self.directory.recipe)
            else:
                go_on(self.recipe, self.directory, self.search_too)
            self.directory.log({"event": "resume" if self.resume else "start", "recipe": self.recipe.name})
        except OSError as error:
            raise NotWritten(f"--out  {path} cannot be written: {reason_of(error)}") from error

    def _estimate(self, opened: Opened) -> None:
        """Say how long the stages that are left will take."""
        left = [stage for stage in self.stages if finished_stage(self._place(stage)) is None]
        parts = estimate(left, opened.bundle, opened.data, self.recipe, self.device)
        if parts:
            say(sentence(parts))
            self.directory.log({"event": "estimate", "seconds": {name: round(value, 1) for name, value in parts}})

    def _place(self, stage: Stage) -> Path:
        return self.directory.stage(stage.number, stage.name)

    def _stage(self, stage: Stage, bundle: Bundle, opened: Opened) -> Bundle:
        """Run one stage, or take its result where it is finished."""
        place = self._place(stage)
        record = finished_stage(place)
        if record is not None:
            say(f"{stage.name}: finished before")
            self.records.append(record)
            return Bundle.load(place)
        self.directory.log({"event": "stage", "stage": stage.name, "number": stage.number})
        self.act = stage.name
        say(f"[{stage.number}/{self.stages[-1].number}] {stage.name}")
        started = time.monotonic()
        context = self._context(stage, opened)
        place.mkdir(parents=True, exist_ok=True)
        bundle = stage.function(bundle, stage.config, context)
        step = {"stage": stage.name, **({} if stage.config is None else stage.config.model_dump(mode="json"))}
        bundle.provenance = [*bundle.provenance, step]
        bundle.save(place / "bundle")
        seconds = time.monotonic() - started
        finish_stage(place, stage.name, seconds, context.details, bundle.metrics)
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
        self.records.append({"name": stage.name, "seconds": seconds, **context.details, "metrics": bundle.metrics})
        self.directory.log({"event": "stage_end", "stage": stage.name, "seconds": seconds, "metrics": bundle.metrics})
        return bundle

    def _context(self, stage: Stage, opened: Opened) -> Context:
        first = self._place(self.stages[0])
        return Context(
            recipe=self.recipe,
            data=opened.data,
            device=self.device,
            directory=self._place(stage),
            resume=self.resume,
            log=lambda event: self.directory.log({**event, "stage": stage.name, "number": stage.number}),
            dense=lambda: Bundle.load(first),
            dense_onnx=first / MODEL_FILE,
            final_onnx=self.directory.model,
            step=stage.step,
            earlier=self.records,
        )

    def _finish(self, bundle: Bundle) -> None:
        """Write the winner's bundle and the report, the report last."""
        self.act = "writing the report"
        bundle.save(self.directory.bundle)
        write_json(self.directory.report, self._report())
        write_report(self.directory.path)
        self.directory.log({"event": "end"})

    def _report(self) -> dict[str, Any]:
        """Return report.json as the contract has it."""
        searched = [] if self.searched is None else [self.searched]
        last = (searched + self.records)[-1]
        final = {name: value for name, value in last["metrics"].items() if name != "latency_ms" or self.records}
        baseline = final  # of one model, there is nothing to compare
        if self.recipe.compares:
            baseline = {**self.records[0]["metrics"], "latency_ms": last.get("baseline_latency_ms")}
        ratio = last.get("latency_ratio")
        return {
            "schema": 1,
            "name": self.recipe.name,
            "recipe_sha256": self.recipe.sha256(),
            "seed": self.recipe.seed,
            "environment": self.environment,
            "stages": [
                {"name": record["name"], "seconds": round(record["seconds"], 3), "metrics": record["metrics"]}
                for record in searched + self.records
            ],
            "baseline": {key: baseline.get(key) for key in METRICS},
            "final": {key: final.get(key) for key in METRICS},
            "latency_ratio": None if ratio is None else {key: ratio[key] for key in ("median", "ci95", "blocks")},
            "efficiency": _efficiency(ratio, baseline.get("macs"), final.get("macs")),
        }


def _efficiency(ratio: dict[str, Any] | None, before: int | None, after: int | None) -> float | None:
    """Return the latency ratio over the MAC ratio; None where latency was not measured."""
    return None if ratio is None or not before or not after else ratio["median"] / (before / after)


def _result(directory: RunDirectory) -> RunResult:
    import json

    report = json.loads(directory.report.read_text(encoding="utf-8"))
    if not (directory.path / "report.html").is_file():
        write_report(directory.path)
    return RunResult(directory.path, report, summary_of(directory.path))
