import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import InputError
from compress.report import write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The page's elements, figures by metric, and text; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.figures: dict[str, list[float]] = {}
        self.words: list[str] = []
        self.metric: str | None = None
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]
        self.ids |= {values["id"] or ""} if "id" in values else set()
        if tag == "tr":
            self.metric = values.get("data-metric")
        if tag == "data" and self.metric:
            self.figures.setdefault(self.metric, []).append(float(values["value"] or ""))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] not in ("style", "pre"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def _flat(metrics: dict[str, Any]) -> dict[str, Any]:
    latency = {f"latency_ms.{key}": value for key, value in metrics["latency_ms"].items()}
    return {**{key: value for key, value in metrics.items() if key != "latency_ms"}, **latency}


@pytest.mark.parametrize("name", ["long_run", "short_run"])
def test_table_figures_equal_the_json(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    report = json.loads((run / "report.json").read_text())
    both = _flat(report["baseline"]), _flat(report["final"])
    figures = _page(run).figures
    numbers = {key for key, value in both[0].items() if isinstance(value, int | float) and not isinstance(value, bool)}
    assert set(figures) == numbers
    assert all(figures[key] == [both[0][key], both[1][key]] for key in numbers)


@pytest.mark.parametrize("name", ["long_run", "short_run"])
def test_page_is_self_contained_small_and_free_of_placeholders(name: str, request: pytest.FixtureRequest) -> None:
    path = write_report(request.getfixturevalue(name))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path.stat().st_size < 500_000
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", text)


def test_page_shows_every_part_of_a_full_run(long_run: Path) -> None:
    text = _page(long_run).text
    for part in (
        "87.8 M",
        "15.5 G",
        "\N{MINUS SIGN}0.21 points",
        "1.51\N{MULTIPLICATION SIGN} to 1.60\N{MULTIPLICATION SIGN}",
        "MACs fell by a factor of 2.09",
        "Other work ran on this machine",
        "timed in turns and by CPU time",
        "layers.2.blocks.11, layers.2.blocks.16",
        "16; all new widths comply",
        "its output is the residual stream",
        "Attention heads",
        "Plan: all 60 layers",
        "By stage",
        "1 h 30 min",
        "Platinum 8481C",
        "03-finetune",
    ):
        assert part in text, part


def test_sections_without_data_are_left_out(short_run: Path) -> None:
    page = _page(short_run)
    assert page.ids == {"models", "latency", "stages", "removed-1"}
    assert "polyline" not in page.tags and "median" not in page.text
    for absent in ("Width of each layer", "Left whole", "Plan: all", "Quality", "speed-up"):
        assert absent not in page.text


def test_masks_and_an_undecided_interval_are_explained(short_run: Path) -> None:
    text = _page(short_run).text
    assert "The interval contains 1" in text and "still multiplied" in text
    assert "nonzero MACs" in text


def test_masked_layers_are_not_called_narrower(short_run: Path, long_run: Path) -> None:
    masked = {"layers": [{"name": "fc", "kind": "weights", "before": 100, "after": 40}]}
    (short_run / "stages/01-prune/details.json").write_text(json.dumps(masked))
    text = _page(short_run).text
    assert "Layers with masks" in text and "narrower" not in text
    assert "Layers made narrower" in _page(long_run).text


def test_a_report_of_json_alone_is_a_page(tmp_path: Path) -> None:
    report = {"schema": 1, "name": "bare", "stages": [], "baseline": None, "final": None}
    (tmp_path / "report.json").write_text(json.dumps(report))
    page = _page(tmp_path)
    assert "Neither model was measured" in page.text and page.ids == {"models"}


def test_names_are_escaped(long_run: Path, change: Callable[..., None]) -> None:
    change(long_run, name="<img src=x onerror=1>", environment={"note": "<script>1</script>"})
    page = _page(long_run)
    assert not {"img", "script"} & set(page.tags)
    assert "<script>alert('x')</script> & the residual stream" in page.text


def test_a_slower_model_is_called_slower(long_run: Path, change: Callable[..., None]) -> None:
    change(long_run, latency_ratio={"median": 0.8, "ci95": [0.78, 0.83], "blocks": 30})
    assert "the final model is slower" in _page(long_run).text


def test_widths_off_the_multiple_are_named(long_run: Path) -> None:
    path = long_run / "stages/02-prune/details.json"
    details = json.loads(path.read_text())
    details["layers"][1]["after"] = 37
    path.write_text(json.dumps(details))
    text = _page(long_run).text
    assert "1 new width off the multiple" in text and "37 (off the multiple)" in text


def test_writing_twice_gives_the_same_page_and_leaves_no_other_file(long_run: Path) -> None:
    first = write_report(long_run).read_bytes()
    before = sorted(path.name for path in long_run.iterdir())
    assert write_report(long_run).read_bytes() == first
    assert sorted(path.name for path in long_run.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no report.json"),
        ("{", "not readable as JSON"),
        ("[]", "schema: missing"),
        ('{"trials": []}', "schema: missing"),
        ('{"schema": 2, "name": "x"}', "got 2; allowed 1"),
        ('{"schema": 1, "name": "x"}', "baseline: required, but missing"),
        ('{"schema": 1, "name": "x", "baseline": {"macs": "many"}, "final": {}}', 'baseline.macs.*got "many"'),
    ],
)
def test_a_report_that_is_missing_or_foreign_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stages/02-prune/details.json", '{"layers": [{"name": "a", "before": -1, "after": 0}]}'),
        ("stages/02-prune/details.json", "[1]"),
        ("stages/05-latency/samples.json", '{"baseline_ms": [1.0, NaN]}'),
    ],
)
def test_a_stage_file_that_does_not_fit_is_refused_by_name(long_run: Path, name: str, content: str) -> None:
    (long_run / name).write_text(content)
    with pytest.raises(InputError, match=name):
        write_report(long_run)


def test_a_stage_that_finds_or_only_tells_is_not_said_to_remove(short_run: Path) -> None:
    stage = short_run / "stages" / "00-supernet"
    stage.mkdir(parents=True)
    (stage / "details.json").write_text(json.dumps({"notes": ["found a cell"]}))
    text = write_report(short_run).read_text()
    assert "Notes of 00-supernet" in text and "Removed in 00-supernet" not in text
    (stage / "found.svg").write_text('<svg id="the-cell"></svg>')
    text = write_report(short_run).read_text()
    assert "Found in 00-supernet" in text and '<svg id="the-cell">' in text
