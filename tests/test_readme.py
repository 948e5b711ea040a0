"""What README.md says: its commands run as they stand on the page, its recipes are valid, its names exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pages
import played_pages
import pytest
from pages import ROOT, blocks, commands
from played_pages import NOT_HERE, play
from typer.testing import CliRunner

from compress.cli import app
from compress.runs.catalog import listing

PAGES = [page.read_text(encoding="utf-8") for page in pages.PAGES]
README = PAGES[0]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    play(page, folder, monkeypatch)


def test_what_a_command_does_not_print_is_found_on_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, folder = tmp_path / "page.md", tmp_path / "reader"
    folder.mkdir()
    text = "```bash\nssh board echo 3 files, 12.5 MB\n```\n\n```text\n40 files, 3 MB\n{}\n```\n"
    page.write_text(text.format("..."))
    play(page, folder, monkeypatch)
    page.write_text(text.format("4 folders"))
    with pytest.raises(AssertionError, match=r"page\.md:6: not printed:\n4 folders"):
        play(page, folder, monkeypatch)
    page.write_text(text.partition("40 files")[0] + "```\n")
    with pytest.raises(AssertionError, match=r"page\.md:6: an empty block"):
        play(page, folder, monkeypatch)
    page.write_text("```bash\ncompress validate none.yaml   # exit code 2\ncompress validate none.yaml\n```\n")
    with pytest.raises(AssertionError, match="no such recipe"):
        play(page, folder, monkeypatch)


def test_every_reason_is_needed() -> None:
    every = [command for page in PAGES for command in commands(page)]
    assert [start for start in NOT_HERE if not any(command.startswith(start) for command in every)] == []


def test_every_link_leads_somewhere() -> None:
    for page, text in zip(pages.PAGES, PAGES, strict=True):
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)


def test_the_recipe_on_the_page_is_valid(tmp_path: Path) -> None:
    (whole,) = blocks(README, "yaml")
    for part in ("train", "val"):
        (tmp_path / "flowers" / part).mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text(whole.replace("/data/flowers", str(tmp_path / "flowers")))
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "mine.yaml")])
    assert result.exit_code == 0, result.output


def test_every_extra_that_a_page_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for page in PAGES for name in re.findall(r"compress\[([\w-]+)\]", page)}
    assert named and named <= extras["optional-dependencies"].keys()


def test_every_recipe_and_space_is_in_a_table() -> None:
    tables = "\n".join(line for page in PAGES for line in page.splitlines() if line.startswith("| `"))
    listed = tables.replace("{tiny,small,base}", "tiny") + tables.replace("{tiny,small,base}", "small")
    listed += tables.replace("{tiny,small,base}", "base")
    assert [name for kind in ("recipes", "spaces") for name in listing(kind) if f"`{name}`" not in listed] == []


def test_every_file_that_a_page_names_exists() -> None:
    folders = ("compress", "search", "spaces", "evaluators", "recipes", "benchmarks", "tests", "docs", ".ci")
    files = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    there = [f"/{path.relative_to(ROOT).as_posix()}" for path in files]
    not_ours = {"best1/", "stages/01-search/", "bundle/", "stages/"}
    named = {name for page in PAGES for name in re.findall(r"`([\w./-]+(?:\.py|\.csv|\.md|/))`", page)} - not_ours
    named = {name for name in named if not name.endswith("/CLASS/")}
    examples = {block.file for page in PAGES for block in played_pages.blocks(page)}
    examples |= set(re.findall(r"such as `([\w/]+\.py)`", PAGES[1]))
    lost = [name for name in sorted(named - examples) if not any(p.endswith(f"/{name.rstrip('/')}") for p in there)]
    assert len(named) > 20 and lost == []
