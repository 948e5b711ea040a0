"""The page report.html of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.core.atomic import write_text
from compress.report.bars import BarSet, kept_chart, width_charts
from compress.report.curves import training_curves
from compress.report.details import Details
from compress.report.family import family_part
from compress.report.histogram import latency_chart
from compress.report.latencies import latency_table
from compress.report.quantized import quantized_part
from compress.report.rank import rank_part
from compress.report.results import Run, read_run
from compress.report.search import search_part
from compress.report.sensitivity import SensitivityTable, sensitivity_table
from compress.report.story import story_of
from compress.report.story_chart import story_chart
from compress.report.summary import summarise
from compress.report.tables import (
    environment_rows,
    latency_sentences,
    latency_warning,
    misaligned,
    model_rows,
    plan_facts,
    skipped_by_reason,
    tiles,
    title_of_one,
)


def write_report(run_dir: Path) -> Path:
    """Write report.html of a finished run and return its path.

    One self-contained file without scripts: tables, inline drawings and style; what the run did not record is left out.

    Raises:
        InputError: report.json is missing or of another schema, or a file of the run does not hold what it should.
    """
    run_dir = Path(run_dir)
    path = run_dir / "report.html"
    write_text(path, render(read_run(run_dir)))
    return path


def render(run: Run) -> str:
    """Return the page as HTML; every name in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("compress.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = model_rows(run.report)
    removals = [_removal(name, details, run) for name, details in run.details.items()]
    return environment.get_template("report.html.j2").render(
        run=run,
        report=run.report,
        summary=summarise(run.report, run.shown_path, run.model),
        tiles=tiles(run.report),
        rows=rows,
        models_title=title_of_one(run.report) if rows and run.report.alone else "Both models",
        latency_text=latency_sentences(run.report),
        latency_warning=latency_warning(run.report),
        latency_chart=latency_chart(run.samples, run.report.baseline.latency_ms, run.report.final.latency_ms),
        story=story_of(run.report),
        story_chart=story_chart(run.report, run.family, [each.search for each in run.details.values() if each.search]),
        removals=[removal for removal in removals if removal.shown],
        searches=[search_part(each.search, run.pictures, run.report) for each in run.details.values() if each.search],
        ranks=[rank_part(each.rank) for each in run.details.values() if each.rank],
        quantized=[quantized_part(each.quantized, run.report) for each in run.details.values() if each.quantized],
        family=family_part(run.family, run.report) if run.family else None,
        curves=training_curves(run.events, run.report.main),
        environment=environment_rows(run.report.environment),
    )


@dataclass(frozen=True)
class Removal:
    """What one stage removed, found or has to say, ready for the template; `picture` is SVG markup."""

    stage: str
    details: Details
    facts: list[tuple[str, str]]
    kept: list[BarSet]
    widths: list[BarSet]
    skipped: list[tuple[str, list[str]]]
    misaligned: set[str]
    sensitivity: SensitivityTable | None
    latencies: list[list[str]]
    picture: str | None

    @property
    def title(self) -> str:
        """What the section is called."""
        if self.picture is not None:
            return f"Found in {self.stage}"
        return f"Removed in {self.stage}" if self._removed else f"Notes of {self.stage}"

    @property
    def shown(self) -> bool:
        """Whether there is anything to show."""
        return bool(self._removed or self.details.notes or self.picture)

    @property
    def _removed(self) -> bool:
        return bool(self.facts or self.kept or self.widths or self.skipped or self.details.sensitivity)


def _removal(stage: str, details: Details, run: Run) -> Removal:
    parts = (("By stage", details.stages), ("By module", details.modules))
    return Removal(
        stage=stage,
        details=details,
        facts=plan_facts(details),
        kept=[kept_chart(title, items) for title, items in parts if items],
        widths=width_charts(details.layers),
        skipped=skipped_by_reason(details),
        misaligned={layer.name for layer in misaligned(details)},
        sensitivity=sensitivity_table(details.sensitivity, run.report.main),
        latencies=latency_table(details.latencies, run.report.main),
        picture=run.found.get(stage),
    )
