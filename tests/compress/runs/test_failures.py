"""Whatever is raised, wherever: one sentence, the exit code of the contract, and files that are whole or absent."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import compress
from compress.bundle import Bundle
from compress.cli import app
from compress.core.atomic import check_writable, write_text
from compress.core.errors import CompressError, Diverged, InputError, in_one_line, is_out_of_memory
from compress.runs import runner
from compress.runs.artifact import Artifact
from compress.runs.measure import metrics_of
from compress.runs.stage import stages
from evaluators.tasks import DEFAULT
from spaces.shapes import check_forward

MODEL = """
from torch import nn

def make(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""
RECIPE = """
version: 1
name: tiny
model: {source: python, name: "tiny:make", input_size: [3, 8, 8]}
data: {name: none}
prune: {kind: weights, criterion: magnitude, sparsity: 0.5}
export: {exporter: torchscript}
latency: {}
"""
ERRORS: dict[str, tuple[BaseException, int]] = {
    "input": (InputError("model.name: is wrong"), 2),
    "several": (InputError("model.name: is wrong", "data.name: is wrong"), 2),
    "compress": (CompressError("could not be done\nfor two reasons"), 1),
    "diverged": (Diverged("logits are NaN"), 1),
    "full": (OSError(errno.ENOSPC, "No space left on device"), 1),
    "access": (PermissionError(errno.EACCES, "Permission denied", "model.onnx"), 1),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "model.onnx"), 1),
    "absent": (FileNotFoundError(errno.ENOENT, "No such file or directory", "image.png"), 1),
    "memory": (MemoryError(), 1),
    "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), 1),
    "interrupt": (KeyboardInterrupt(), 130),
    "runtime": (RuntimeError("mat1 and mat2 cannot be multiplied\n  at line 3"), 1),
    "recursion": (RecursionError("maximum recursion depth exceeded"), 1),
    "assertion": (AssertionError(), 1),
    "exit": (SystemExit(3), 1),
    "value": (ValueError("a strange value"), 1),
    "key": (KeyError("conv.weight"), 1),
    "process": (subprocess.CalledProcessError(1, ["ssh", "host"]), 1),
    "timeout": (subprocess.TimeoutExpired(["ssh", "host"], 30.0), 1),
    "text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 1),
    "stop": (StopIteration(), 1),
    "connection": (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 1),
}
FEW = ("input", "full", "interrupt", "runtime", "gpu")
STAGES = ("train", "prune", "export", "latency")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(MODEL)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    # what the stages do is tested elsewhere; here each only hands its bundle on
    for name in STAGES:
        monkeypatch.setattr(stages.get(name), "run", _passed)
    return tmp_path


def _passed(stage: Any, artifact: Artifact, config: Any, context: Any) -> Artifact:
    return Artifact(replace(artifact.loaded, metrics=dict.fromkeys(metrics_of(DEFAULT))))


def invoke(*flags: str) -> Any:
    return CliRunner().invoke(app, ["run", "--recipe", "tiny.yaml", "--out", "out", "--quiet", *flags])


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def _at(place: str, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Let `error` be raised at `place` of a run."""
    fail = _raise(error)
    if place in STAGES:
        patch.setattr(stages.get(place), "run", fail)
    elif place == "bundle":
        patch.setattr(Bundle, "_write", fail)
    else:
        patch.setattr(runner, place, fail)


def _check_files(run: Path) -> None:
    """Nothing is half-written: the report is whole or absent, finished stages open, no temporary files are left."""
    if (run / "report.json").exists():
        json.loads((run / "report.json").read_text())
    for metrics in run.glob("stages/*/metrics.json"):
        Bundle.load(metrics.parent)
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]
    if run.exists():
        assert (run / "recipe.yaml").is_file()
        for line in (run / "log.jsonl").read_text().splitlines():
            json.loads(line)


def _check_failure(result: Any, code: int, run: Path, problems: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == problems, result.stderr
    _check_files(run)
    if code == 1:
        assert "log.jsonl" in lines[-1]
        assert "--resume" in lines[-1] or "correct the recipe and run it again" in lines[-1]
    if code == 130:
        assert "go on with: compress run" in lines[-1]


def _goes_on(run: Path) -> None:
    result = invoke(*(["--resume"] if run.exists() else []))
    assert result.exit_code == 0, result.output
    assert json.loads((run / "report.json").read_text())["name"] == "tiny"


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("place", ["open_model", "prune"])
def test_every_exception_is_one_sentence_and_the_run_goes_on(folder: Path, place: str, name: str) -> None:
    error, code = ERRORS[name]
    with pytest.MonkeyPatch.context() as patch:
        _at(place, error, patch)
        result = invoke()
    _check_failure(result, code, folder / "out", len(getattr(error, "problems", [1])))
    if code == 2:
        assert "tiny.yaml:4  model.name: is wrong" in result.stderr
        assert (folder / "out").exists() == (place == "prune")  # nothing was done before the model is opened
    _goes_on(folder / "out")


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    "place",
    ["train", "export", "latency", "bundle", "finish_stage", "write_json", "write_report", "environment", "estimate"],
)
def test_every_boundary_of_a_run_may_fail(folder: Path, place: str, name: str) -> None:
    error, code = ERRORS[name]
    with pytest.MonkeyPatch.context() as patch:
        _at(place, error, patch)
        result = invoke()
    if place == "bundle" and name == "full":
        code = 2  # of the first stage, with nothing done before
    _check_failure(result, code, folder / "out")
    _goes_on(folder / "out")


@pytest.mark.parametrize("name", ["full", "read-only", "access"])
def test_a_disk_that_is_full_at_the_start_leaves_nothing(folder: Path, name: str) -> None:
    for place in (
        "compress.runs.directory.RunDirectory.log",
        "compress.runs.directory.FileLock.acquire",
        "compress.core.atomic.tempfile.mkstemp",
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, _raise(ERRORS[name][0]))
            result = invoke()
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1, result.output
        assert str(ERRORS[name][0].strerror) in result.stderr and not (folder / "out").exists()  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_output_that_cannot_be_written_is_one_sentence() -> None:
    call = f"{sys.executable} -P -m compress ls recipes"
    full = subprocess.run(f"{call} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert full.returncode == 1 and full.stderr.count("\n") == 1 and "No space left on device" in full.stderr
    gone = subprocess.run(f"{call} | true", shell=True, capture_output=True, text=True, check=False)
    assert gone.stdout == gone.stderr == ""


@pytest.mark.parametrize("there", ["link", "file", "link/below", "file/below", "x" * 300])
def test_an_output_that_cannot_be_made_is_refused(folder: Path, there: str) -> None:
    (folder / "link").symlink_to("nowhere")
    (folder / "file").write_text("")
    with pytest.raises(InputError, match=r"^--out  .* cannot be written: "):
        check_writable(Path(there))
    result = CliRunner().invoke(app, ["run", "--recipe", "tiny.yaml", "--out", there])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["file", "link", "tiny.py", "tiny.yaml"]


def test_a_link_to_a_folder_is_written_through_and_stays(folder: Path) -> None:
    (folder / "disk").mkdir()
    (folder / "out").symlink_to("disk")
    with pytest.MonkeyPatch.context() as patch:
        _at("open_model", ERRORS["input"][0], patch)
        assert invoke().exit_code == 2
    assert (folder / "out").is_symlink() and not list((folder / "disk").iterdir())
    assert invoke().exit_code == 0 and (folder / "disk" / "report.json").is_file()


def test_a_copy_that_fails_leaves_no_file(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", _raise(ERRORS["full"][0]))
        result = CliRunner().invoke(app, ["cp", "dimap_swin.yaml", "mine.yaml"])
    assert result.exit_code == 2 and "cannot write mine.yaml: No space left on device" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.py", "tiny.yaml"]
    with pytest.raises(InputError, match=r"cannot write .*: Is a directory"):
        (folder / "there").mkdir()
        write_text(folder / "there", "text")
    assert not list((folder / "there").iterdir())


@pytest.mark.parametrize("name", ERRORS)
def test_commands_outside_of_runs_give_one_sentence_too(name: str) -> None:
    error, code = ERRORS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.runs.recipe.load_recipe", _raise(error))
        result = CliRunner().invoke(app, ["validate", "tiny.yaml"])
    assert result.exit_code == (2 if getattr(error, "filename", None) else code)
    assert "Traceback" not in result.output and 1 <= len(result.stderr.strip().splitlines()) <= 2


class Hungry(torch.nn.Module):
    """Runs out of memory, as a large input makes any model do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_memory_that_runs_out_is_never_taken_for_a_fault_of_the_model(folder: Path) -> None:
    images = torch.randn(1, 3, 8, 8)
    with pytest.raises(torch.OutOfMemoryError):
        compress.plan(Hungry(), images, criterion="magnitude", budget={"macs": 0.5})
    with pytest.raises(torch.OutOfMemoryError):
        check_forward(Hungry(), "hungry", DEFAULT.bind(0, (3, 8, 8)))
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        assert is_out_of_memory(error) and in_one_line(error).startswith("out of memory (")
    assert not is_out_of_memory(RuntimeError("mat1 and mat2"))


def test_an_exception_without_words_is_told_with_its_place() -> None:
    try:
        raise AssertionError
    except AssertionError as error:
        said = in_one_line(error)
    assert re.fullmatch(r"AssertionError at .*test_failures\.py:\d+ \(raise AssertionError\)", said)
    assert in_one_line(KeyError("x")) == "KeyError: 'x'"
    assert in_one_line(AssertionError()) == "AssertionError"  # never raised


def test_a_directory_that_is_removed_under_a_run_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(*args: Any) -> Any:
        shutil.rmtree("out")
        return (folder / "out" / "file").read_text()

    monkeypatch.setattr(stages.get("prune"), "run", remove)
    result = invoke()
    assert result.exit_code == 1
    assert result.stderr == "prune failed: out was removed while the run was working in it\n"
    assert not (folder / "out").exists()
