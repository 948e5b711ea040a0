"""A run's directory: where each file lies, what is finished, and the log."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.core.atomic import check_writable, write_json
from compress.core.errors import InputError
from compress.core.home import at_home
from compress.core.progress import say
from compress.runs.recipe import Recipe


class RunInUse(InputError):
    """Another process works in this run's directory."""


@dataclass(frozen=True)
class RunDirectory:
    """runs/<name>/ as the contract lays it out."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def report(self) -> Path:
        """The report, complete or absent."""
        return self.path / "report.json"

    @property
    def model(self) -> Path:
        """The winner as ONNX."""
        return self.path / "model.onnx"

    @property
    def bundle(self) -> Path:
        """The winner, reloadable."""
        return self.path / "bundle"

    @property
    def log_file(self) -> Path:
        """One event a line."""
        return self.path / "log.jsonl"

    def holds_work(self) -> bool:
        """Return whether a finished stage or a checkpoint of a training lies here."""
        return any(True for kind in ("metrics.json", "checkpoint/*") for _ in self.path.glob(f"stages/*/{kind}"))

    def is_bare(self) -> bool:
        """Return whether a run that began here has left its recipe and its log and nothing else.

        A recipe alone may be the user's.
        """
        if not self.log_file.is_file():
            return False
        own = {path.name for path in (self.recipe, self.log_file, self.lock_file)}
        files = (path for path in self.path.rglob("*") if not path.is_dir())
        return all(path.parent == self.path and (path.name in own or _half_written(path)) for path in files)

    def stage(self, number: int, name: str) -> Path:
        """Return the directory of the stage that runs as `number`, from 1."""
        return self.path / "stages" / f"{number:02d}-{name}"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that works in the directory."""
        return self.path / ".lock"

    def hold(self) -> FileLock:
        """Return a lock on the directory, held until it is released or the process ends, however it ends.

        Raises:
            RunInUse: another process holds it.
        """
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise RunInUse(
                f"--out  another process is running in {self.path}; wait for it, or name another directory with --out"
            ) from error
        return lock

    def let_go(self, lock: FileLock) -> None:
        """Release the lock that `hold` gave and take its file away; whoever waits for that file makes a new one."""
        with contextlib.suppress(OSError):  # Windows keeps open files, and takes this one away itself
            self.lock_file.unlink(missing_ok=True)
        lock.release()

    def log(self, event: dict[str, Any]) -> None:
        """Append an event with the time of day."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **event}, default=str)
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def open_run(recipe: Recipe, out: Path | None, resume: bool) -> tuple[RunDirectory, bool]:
    """Return the directory of a run of `recipe`, and whether it is new; nothing is written into an existing one.

    A run that came to nothing, as with a mistyped target, holds no directory: the next one, with another recipe if it
    is corrected, is as new there.

    Raises `InputError` in one sentence where the directory cannot be written, or is in use by another run or by other
    files. Whether a run that is to be resumed has this recipe is for `compress.runs.resume` to say.
    """
    directory = RunDirectory(at_home(out) if out is not None else Path("runs") / recipe.name)
    check_writable(directory.path)
    entries = list(directory.path.iterdir()) if directory.path.is_dir() else []
    if all(entry.name == directory.lock_file.name or _half_written(entry) for entry in entries):
        return directory, True
    if not directory.recipe.is_file():
        raise InputError(f"--out  {directory.path} holds other files and no run; name an empty or new directory")
    if resume and not (directory.is_bare() and _other_recipe(recipe, directory)):
        return directory, False
    if directory.report.is_file():
        raise InputError(
            f"--out  {directory.path} holds a finished run, which stays as it is; name another directory with --out, "
            "or print its result again with --resume"
        )
    if directory.lock_file.exists():
        directory.let_go(directory.hold())  # RunInUse where it is not interrupted, but under way
    if directory.is_bare():
        say(f"{directory.path} holds a run that did not get beyond its beginning; this one begins anew there")
        return directory, True
    raise InputError(
        f"--out  {directory.path} holds an interrupted run; go on with it by --resume, or name another directory "
        "with --out"
    )


def _half_written(file: Path) -> bool:
    """Return whether a process that was killed while it wrote the recipe has left `file`."""
    return file.name.startswith(".recipe.yaml.")


def _other_recipe(recipe: Recipe, directory: RunDirectory) -> bool:
    try:
        return directory.recipe.read_text(encoding="utf-8") != recipe.to_yaml()
    except (OSError, UnicodeDecodeError):
        return True


def holds_files(folder: Path) -> bool:
    """Return whether a file lies somewhere in `folder`, which need not be there."""
    return any(not path.is_dir() for path in folder.rglob("*"))


def finished_stage(directory: Path) -> dict[str, Any] | None:
    """Return name, seconds, metrics and details of a finished stage, or None.

    A stage is finished when its metrics.json is there: it is written last.
    """
    if not (directory / "metrics.json").is_file():
        return None
    try:
        metrics, details = (
            json.loads((directory / name).read_text(encoding="utf-8")) for name in ("metrics.json", "details.json")
        )
        return {**details, "metrics": metrics}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{directory} is damaged ({error}); delete it to run the stage again") from error


def finish_stage(directory: Path, name: str, seconds: float, details: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write what a stage did and measured, which marks it finished."""
    write_json(directory / "details.json", {**details, "name": name, "seconds": round(seconds, 3)})
    write_json(directory / "metrics.json", metrics)


@contextlib.contextmanager
def folder_unless_empty(place: Path) -> Iterator[None]:
    """Make the directory of a stage; what was refused before anything was written leaves none behind."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds something
            place.rmdir()
            place.parent.rmdir()


def discard(directory: RunDirectory) -> None:
    """Remove what a run has written into a directory that was new or empty, and the directory unless it is a link."""
    shutil.rmtree(directory.path.resolve(), ignore_errors=True)
    if directory.path.is_symlink():  # the link was the user's, and what it names is there again
        directory.path.resolve().mkdir(exist_ok=True)
