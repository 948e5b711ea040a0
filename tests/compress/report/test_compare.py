import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from compress.core.errors import InputError
from compress.report import compare_runs, comparison_json, comparison_notes, comparison_table


def _printed(runs: list[Path], width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(compare_runs(runs)))
    return console.export_text().replace("\N{NO-BREAK SPACE}", " ")


def test_rows_hold_the_figures_of_each_report_in_the_order_given(long_run: Path, short_run: Path) -> None:
    rows = compare_runs([short_run, long_run])
    assert [row.name for row in rows] == ["resnet56_masks", "dimap_swin"]
    report = json.loads((long_run / "report.json").read_text())
    assert rows[1].macs == report["final"]["macs"] and rows[1].latency_p50 == report["final"]["latency_ms"]["p50"]
    assert rows[1].change == pytest.approx(-0.212)
    assert rows[0].macs_change == pytest.approx(100 * (60.1 / 126.9 - 1)) and rows[0].value is None


def test_rows_are_plain_json(long_run: Path, short_run: Path) -> None:
    rows = comparison_json(compare_runs([long_run, short_run]))
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["latency_ratio_ci95"] == [1.512, 1.602]


def test_table_shows_each_run_and_marks_masks_and_busy_machines(long_run: Path, short_run: Path) -> None:
    text = _printed([long_run, short_run])
    assert "83.26 (\N{MINUS SIGN}0.21)" in text and "385 K* (\N{MINUS SIGN}55 %)" in text
    assert "1.55\N{MULTIPLICATION SIGN}" in text and "None" not in text
    notes = comparison_notes(compare_runs([long_run, short_run]))
    assert [note[0] for note in notes[:2]] == ["*", "!"] and "different baselines" in notes[-1]


@pytest.mark.parametrize("runs", [2, 6])
def test_table_fits_a_narrow_terminal_without_cutting_figures(long_run: Path, runs: int) -> None:
    words = _printed([long_run] * runs, 80).split()
    assert all(words.count(figure) == runs for figure in ("(\N{MINUS SIGN}0.21)", "41.9", "168", "38.2!", "0.74"))


def test_columns_that_no_run_measured_are_left_out(short_run: Path) -> None:
    assert "top-1" not in _printed([short_run, short_run])


def test_differing_machines_and_threads_are_pointed_out(long_run: Path, change: Callable[..., None]) -> None:
    other = long_run.parent / "other"
    shutil.copytree(long_run, other)
    assert not any("measured" in note for note in comparison_notes(compare_runs([long_run, other])))
    change(other, environment={"cpu": "Cortex-A76"}, final__latency_ms__threads=4)
    notes = " ".join(comparison_notes(compare_runs([long_run, other])))
    assert "different machines" in notes and "different thread counts" in notes


def test_names_are_not_read_as_console_markup(long_run: Path, tmp_path: Path) -> None:
    odd = long_run.rename(tmp_path / "run[red]")
    assert "run[red]" in "".join(_printed([odd], 300).split())


def test_comparing_with_a_directory_that_is_no_run_is_refused(long_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        compare_runs([long_run, tmp_path / "nowhere"])
