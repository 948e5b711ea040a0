"""Every shipped recipe runs by the commands in its own first lines and on the pages, with all its trials and stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pages
import pytest
from typer.testing import CliRunner

from compress.cli import app
from compress.runs.catalog import listing
from compress.runs.recipe import load_recipe
from compress.runs.stage import acts_of

RECIPES = [name for name in listing("recipes") if not name.startswith("paper/")]
FILES = {
    "nats_ss_cifar10_accuracy.csv": "bossnas/nats_ss_cifar10_accuracy.csv",
    "resnet20.safetensors": "weights/cifar10_resnet/resnet20.safetensors",
    "resnet20_dense.safetensors": "weights/cifar10_resnet20_pruned/resnet20_dense.safetensors",
    "resnet56.safetensors": "weights/cifar10_resnet/resnet56.safetensors",
}
"""What recipes want to be given, by where it lies in COMPRESS_DATA."""
ELSEWHERE = {
    "--ray-address 10.0.0.1:6379": "tests/search/test_ray.py starts a cluster to go to",
    "--device cuda:0,cuda:1": "tests/compress/runs/test_replicated.py trains on two processes of the CPU",
}
"""Parts of commands that are not run here, and why."""


def commands_of(recipe: str) -> list[str]:
    """What a reader is told to type: in the recipe, else on a page."""
    on_pages = [
        command
        for page in pages.PAGES
        for command in pages.commands(page.read_text(encoding="utf-8"))
        if pages.shipped(command) == recipe and not any(part in command for part in ELSEWHERE)
    ]
    in_recipe = pages.of_recipe(recipe)
    return [*in_recipe, *(command for command in dict.fromkeys(on_pages) if command not in in_recipe)]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that several recipes want."""
    return tmp_path_factory.mktemp("shared")


def give_files(recipe: str, folder: Path, shared: Path) -> None:
    """Put into `folder` what the recipe names and does not make itself; skip where it is not at hand."""
    text = pages.find_recipe(recipe).read_text(encoding="utf-8")
    text += "".join(pages.QUICKER[recipe.removesuffix(".yaml")])
    wanted = [name for name in (*FILES, "cifar10.npz") if name in text]
    if wanted and "COMPRESS_DATA" not in os.environ:
        pytest.skip(f"{', '.join(wanted)}: found through COMPRESS_DATA, which is not set")
    for name in wanted:
        data = Path(os.environ["COMPRESS_DATA"]).resolve()
        if name in FILES:
            (folder / name).symlink_to(data / FILES[name])
        else:
            if not (shared / name).is_file():
                write_cifar10(data, shared / name)
            (folder / name).symlink_to(shared / name)


def write_cifar10(data: Path, path: Path) -> None:
    """Write a part of the images as one .npz: the first strip of every class."""
    tool = data.parent / "tools" / "cifar10_npz.py"
    if not tool.is_file():
        pytest.skip(f"{tool} is not there: it writes {path.name}")
    for part in ("train", "test"):
        (path.parent / "strips" / part).mkdir(parents=True)
        strips = sorted((data / "cifar10" / part).glob("*.webp"), reverse=True)
        for strip in {strip.stem.split("_")[0]: strip for strip in strips}.values():
            (path.parent / "strips" / part / strip.name).symlink_to(strip)
    subprocess.run([sys.executable, tool, path, "--data", path.parent / "strips"], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=pytest.mark.xdist_group("ray") if name == "search_ray.yaml" else ()) for name in RECIPES],
)
def test_a_recipe_runs_as_it_says(recipe: str, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if recipe == "search_ray.yaml":
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    give_files(recipe, tmp_path, shared)
    commands = commands_of(recipe)
    assert any(pages.shipped(command) == recipe for command in commands)
    for command in commands:
        result = CliRunner().invoke(app, pages.quicker(command, tmp_path))
        assert result.exit_code == 0, (command, result.stderr)
        assert result.stdout.strip()
        shipped = pages.shipped(command)
        if shipped:
            check_run(shipped, Path("runs") / shipped.removesuffix(".yaml"))
            assert result.stdout.splitlines()[-1].endswith(f"  runs/{shipped.removesuffix('.yaml')}")


def check_run(recipe: str, run: Path) -> None:
    """Make sure that a run had all stages and trials of the recipe as it is shipped."""
    whole = load_recipe(recipe)
    report = json.loads((run / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == [act.name for act in acts_of(whole)]
    if whole.section("search") is None:
        return
    (details,) = (run / "stages").glob("*-search/details.json")
    counted = json.loads(details.read_text())["search"]["trials"]
    if whole.section("search").strategy.name == "netadapt":  # ends where it has reached its target
        assert counted["complete"] > 5  # the network it begins with, and a round of proposals
    else:
        fewer = pages.overrides(whole.name).get("search.trials")
        assert fewer is None or recipe.endswith("_cifar10.yaml")
        assert counted["complete"] + counted["broken"] + counted["stopped"] == (fewer or whole.section("search").trials)


def test_every_recipe_is_made_quicker_and_no_other() -> None:
    assert sorted(f"{name}.yaml" for name in pages.QUICKER) == sorted(RECIPES)


def test_what_is_left_out_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in pages.PAGES)
    assert [part for part in ELSEWHERE if part not in text] == []
