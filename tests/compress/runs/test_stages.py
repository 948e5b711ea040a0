"""A stage that only these tests know is a section of recipes like the shipped ones, and acts where it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import Field
from typer.testing import CliRunner

import compress
from compress.bundle import Bundle, open_model
from compress.cli import app
from compress.commands.stages import STAGE_COMMANDS
from compress.core.config import Config
from compress.core.errors import CompressError, InputError
from compress.runs.artifact import Artifact
from compress.runs.context import Context, Outlook
from compress.runs.dry_run import dry_run
from compress.runs.measure import measured
from compress.runs.recipe import load_recipe, recipe_schema
from compress.runs.stage import Act, Stage, acts_of, all_stages, stages
from spaces.zoo import ModelConfig

RECIPE = """version: 1
name: clipped
model: {source: builtin, name: cifar_resnet20}
data: {name: digits, image_size: 8, limit_train: 40, limit_test: 20}
prune: {kind: weights, sparsity: 0.5}
clip: {}
export: {exporter: torchscript}
"""


class ClipConfig(Config):
    limit: float = Field(0.05, gt=0, le=1, description="largest magnitude of a weight")


class Clip(Stage[ClipConfig]):
    order = 45
    Config = ClipConfig
    description = "weights become no larger than a limit"

    def check(self, config: ClipConfig, key: Any, sections: Mapping[str, Any]) -> Iterator[Any]:
        if sections.get("prune", ...) is None:
            yield key, "clips what pruning leaves, so it needs a prune section"

    def run(self, artifact: Artifact, config: ClipConfig, context: Context) -> Artifact:
        assert artifact.onnx is None and [record["name"] for record in context.earlier] == ["dense", "prune"]
        weights = list(artifact.loaded.model.parameters())
        context.details["clipped"] = sum(int((weight.abs() > config.limit).sum()) for weight in weights)
        context.details["notes"] = [f"clipped at ±{config.limit}"]
        for weight in weights:
            weight.data.clamp_(-config.limit, config.limit)
        return Artifact(measured(artifact.loaded, context))

    def estimate(self, act: Act, outlook: Outlook) -> Iterator[tuple[str, float]]:
        yield "clip", 40.0

    def foresee(self, bundle: Bundle, config: ClipConfig, outlook: Outlook) -> Bundle:
        outlook.notes.append(f"would be clipped at {config.limit}")
        return bundle


@pytest.fixture
def clip() -> Iterator[None]:
    stages.register("clip")(Clip)
    yield
    del stages._items["clip"]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "clipped.yaml"
    path.write_text(RECIPE)
    return path


def largest(model: torch.nn.Module) -> float:
    return max(float(weight.detach().abs().max()) for weight in model.parameters())


def test_a_stage_of_a_third_party_runs_where_it_says_and_is_in_every_file(
    clip: None, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compress.run(recipe, out=tmp_path / "run", device="cpu")
    assert [stage["name"] for stage in result.report["stages"]] == ["dense", "prune", "clip", "export"]
    assert "clip 40.0 s" in capsys.readouterr().err
    place = result.directory / "stages" / "03-clip"
    details = json.loads((place / "details.json").read_text())
    assert details["name"] == "clip" and details["clipped"] > 0
    assert "clipped at ±0.05" in (result.directory / "report.html").read_text()
    assert largest(compress.load(place)) == largest(result.load()) == pytest.approx(0.05)
    assert Bundle.load(result.directory).provenance[2] == {"stage": "clip", "limit": 0.05}
    assert yaml.safe_load((result.directory / "recipe.yaml").read_text())["clip"] == {"limit": 0.05}
    # an interruption after it: what it left is taken up again
    for path in ("report.json", "model.onnx", "stages/04-export"):
        remove(result.directory / path)
    again = compress.run(recipe, out=result.directory, device="cpu", resume=True)
    assert "clip: finished before" in capsys.readouterr().err
    assert again.report["final"] == result.report["final"] and (result.directory / "model.onnx").is_file()


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_its_section_is_checked_like_any_other(clip: None, recipe: Path) -> None:
    for change, problem in (
        ({"clip.limit": 2.0}, "--set  clip.limit: out of range; got 2.0; allowed above 0 and at most 1"),
        ({"clip.limt": 0.1}, "--set  clip.limt: unknown key; allowed limit; did you mean 'limit'?"),
        ({"prune": None}, f"{recipe}:6  clip: clips what pruning leaves, so it needs a prune section"),
        ({"clip": [{}]}, "--set  clip: wrong type; got [{}]; allowed a section of keys"),
    ):
        with pytest.raises(InputError) as caught:
            load_recipe(recipe, change)
        assert caught.value.problems == [problem]
    assert recipe_schema().model_json_schema()["properties"]["clip"]["description"] == Clip.description
    fields = " ".join(recipe_schema().model_fields)
    assert "search train prune ladder finetune clip " in fields and fields.endswith(
        "export quantize references latency"
    )


def test_without_it_the_section_is_unknown(recipe: Path) -> None:
    with pytest.raises(InputError, match=r":6  clip: unknown key; allowed data, distill, export, finetune"):
        load_recipe(recipe)


def test_a_dry_run_shows_what_it_foresees(clip: None, recipe: Path) -> None:
    shown = dry_run(load_recipe(recipe), "cpu")
    assert shown.notes[0] == "would be clipped at 0.05" and shown.seconds["clip"] == 40.0 and len(shown.steps) == 1


def test_a_stage_after_the_export_may_leave_another_file(recipe: Path, tmp_path: Path) -> None:
    class Copy(Stage[ClipConfig]):
        order, Config, description, changes_model = 55, ClipConfig, "another file", False

        def run(self, artifact: Artifact, config: ClipConfig, context: Context) -> Artifact:
            assert artifact.onnx == context.model_file
            other = context.directory / "model.onnx"
            other.write_bytes(artifact.onnx.read_bytes() + b" ")
            return Artifact(artifact.bundle, other)

    stages.register("clip")(Copy)
    try:
        result = compress.run(recipe, out=tmp_path / "run", device="cpu")
        last = result.directory / "stages" / "04-clip" / "model.onnx"
        assert (result.directory / "model.onnx").read_bytes() == last.read_bytes()
    finally:
        del stages._items["clip"]


def test_a_stage_may_bring_the_model_itself(recipe: Path, tmp_path: Path) -> None:
    class Bring(Stage[ClipConfig]):
        order, Config, description, needs_model, finds_model = 5, ClipConfig, "a network", False, True

        def run(self, artifact: Artifact, config: ClipConfig, context: Context) -> Artifact:
            assert artifact.model is None and context.data is None
            network = ModelConfig(source="builtin", name="cifar_resnet20")
            return Artifact(open_model(network, context.recipe.data).bundle)

    stages.register("clip")(Bring)
    try:
        result = compress.run(recipe, {"model": None, "prune": None}, out=tmp_path / "run", device="cpu")
    finally:
        del stages._items["clip"]
    assert [stage["name"] for stage in result.report["stages"]] == ["clip", "dense", "export"]
    assert result.report["baseline"] == result.report["final"] and result.report["final"]["top1"] is not None


@pytest.mark.parametrize(
    ("left", "problem"),
    [(None, "gave back NoneType, which is no Artifact"), (Artifact(), "needs a model, and the stages before it have")],
)
def test_a_stage_that_leaves_no_model_is_not_passed_over(
    left: Any, problem: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: None
) -> None:
    monkeypatch.setattr(Clip, "run", lambda *_: left)
    with pytest.raises(CompressError, match=rf"the stage '(clip|export)' \(.*\) {problem}"):
        compress.run(recipe, out=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("name", "parts", "problem"),
    [
        ("clip", {"order": 45}, "has no Config, description"),
        ("clip", {"order": 45, "Config": object(), "description": ""}, "Config that is no section of a recipe"),
        ("Clip-2", {"order": 45, "Config": ClipConfig, "description": ""}, "needs another name: allowed are small"),
        ("seed", {"order": 45, "Config": ClipConfig, "description": ""}, "needs another name"),
    ],
)
def test_a_stage_that_cannot_be_one_is_named(name: str, parts: dict[str, Any], problem: str, recipe: Path) -> None:
    stages.register(name)(type("Broken", (Stage,), {"run": lambda self, *_: None, **parts}))
    try:
        with pytest.raises(InputError, match=rf"the stage '{name}' \(.*\).* {problem}"):
            load_recipe(recipe)
    finally:
        del stages._items[name]


def test_every_command_of_a_stage_is_one_of_a_registered_stage() -> None:
    assert {command.stage for command in STAGE_COMMANDS} <= set(stages)
    assert CliRunner().invoke(app, ["ls", "stages"]).stdout.split() == [stage.name for stage in all_stages()]


def test_what_runs_recipes_knows_no_section_by_name() -> None:
    root, names = Path(compress.__file__).parent, "|".join(stages)
    files = [
        root / "runs" / f"{name}.py" for name in "recipe estimate dry_run pipeline runner resume report_file".split()
    ]
    for file in (*files, root / "commands" / "run.py"):
        assert re.findall(rf"""recipe\.({names})\b|["']({names})["']""", file.read_text()) == [], file


def test_acts_are_numbered_from_the_search_on_and_a_table_leaves_nothing_to_act_on() -> None:
    numbered = [(act.number, act.name) for act in acts_of(load_recipe("search_digits_mobilenetv3.yaml"))]
    assert numbered == [(1, "search"), (2, "dense"), (3, "export"), (4, "latency")]
