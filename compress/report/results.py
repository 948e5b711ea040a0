"""Read what a finished run left in its directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.core.errors import InputError
from compress.core.run_paths import misled
from compress.report.details import Details, Samples
from compress.report.schema import Report, parse
from compress.sorted.family import FOLDER, INDEX, Family


@dataclass(frozen=True)
class Run:
    """A run directory, read; `details` is keyed by the stage's directory name, in order, and so is `found`.

    `found` holds drawings (SVG) of architectures that a supernet's training ended in, `pictures` those of a search.
    """

    path: Path
    report: Report
    recipe: str = ""
    model: str | None = None
    details: dict[str, Details] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    events: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    family: Family | None = None

    @property
    def shown_path(self) -> str:
        """The directory as the user would type it from here."""
        absolute, here = self.path.resolve(), Path.cwd()
        return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(self.path)


def read_report(run_dir: Path) -> Report:
    """Return report.json of `run_dir`; missing, broken or of another schema is an `InputError`."""
    path = run_dir / "report.json"
    if not path.is_file():
        what = misled(run_dir) or ("holds no report.json" if run_dir.is_dir() else "is not a directory")
        raise InputError(f"{run_dir} {what}; a run writes its report when it has finished")
    value = _json(path)
    if not isinstance(value, dict) or "schema" not in value:
        raise InputError(f"{path}  schema: missing; this is no report of a run")
    if value["schema"] != 1:
        raise InputError(f"{path}  schema: not one that this version reads; got {value['schema']!r}; allowed 1")
    return parse(Report, value, str(path))


def read_run(run_dir: Path) -> Run:
    """Return everything that a report shows of `run_dir`; only report.json must be there.

    Raises InputError where a file is there but does not hold what it should.
    """
    report = read_report(run_dir)
    recipe = run_dir / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    details, samples = {}, Samples()
    for stage in sorted(path for path in run_dir.glob("stages/*") if path.is_dir()):
        details[stage.name] = parse(Details, _mapping(stage / "details.json"), str(stage / "details.json"))
        if (stage / "samples.json").is_file():
            samples = parse(Samples, _mapping(stage / "samples.json"), str(stage / "samples.json"))
    events = _events(run_dir / "log.jsonl")
    drawn = {path.parent.name: path.read_text(encoding="utf-8") for path in run_dir.glob("stages/*/found.svg")}
    family = Family.load(run_dir) if (run_dir / FOLDER / INDEX).is_file() else None
    return Run(run_dir, report, text, _model_name(text), details, samples, events, _pictures(run_dir), drawn, family)


def _pictures(run_dir: Path) -> list[str]:
    """Return the drawings of a search's best architectures, the best first."""
    paths = sorted(run_dir.glob("stages/*-search/best*.svg"), key=lambda path: int(path.stem.removeprefix("best")))
    return [path.read_text(encoding="utf-8") for path in paths]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from error


def _mapping(path: Path) -> dict[str, Any]:
    """Return the object in a file that may be absent."""
    if not path.is_file():
        return {}
    value = _json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; got {type(value).__name__}")
    return value


def _events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a log; a line cut short by a kill is passed over."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _model_name(recipe: str) -> str | None:
    """Return `model.name` of a recipe, if it has one."""
    import yaml

    try:
        value = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return None
    model = value.get("model") if isinstance(value, dict) else None
    name = model.get("name") if isinstance(model, dict) else None
    return str(name) if name else None
