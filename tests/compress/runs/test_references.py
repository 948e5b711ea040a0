"""Networks beside the run's, and the models of every stage: trained, timed in one go, and told in the report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.report import write_report
from compress.report.results import read_report
from compress.report.story import story_of
from compress.runs.pipeline import run
from compress.runs.recipe import load_recipe
from compress.runs.stages.latency import twins
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks.evaluation import evaluate

BRIEFLY = {"epochs": 1, "lr": 0.005, "warmup_epochs": 0}
RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "beside",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {"name": "digits", "image_size": 8, "limit_train": 60, "limit_test": 40, "batch_size": 20},
    "train": BRIEFLY,
    "prune": {"kind": "structure", "criterion": "magnitude", "budget": {"macs": 0.5}, "align": 1},
    "finetune": BRIEFLY,
    "export": {"exporter": "torchscript"},
    "references": {"networks": ["resnet10t", {"source": "builtin", "name": "cifar_resnet20"}]},
    "latency": {"stages": True, "runs": 3, "seconds": 0, "max_seconds": 0.2},
}


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "r.yaml"
    content = {key: value for key, value in {**RECIPE, **sections}.items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    return run(written(folder), out=folder / "run", device="cpu").directory


def test_every_stage_and_every_reference_is_timed_in_the_go_of_baseline_and_winner(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == ["dense", "prune", "finetune", "export", "references", "latency"]
    assert stages["dense"]["metrics"]["latency_ms"] == report["baseline"]["latency_ms"]
    assert stages["finetune"]["metrics"]["latency_ms"] == report["final"]["latency_ms"]
    assert stages["finetune"]["latency_ratio"] == report["latency_ratio"]
    assert stages["prune"]["metrics"]["latency_ms"]["p50"] > 0
    assert stages["prune"]["metrics"]["onnx_bytes"] == stages["finetune"]["metrics"]["onnx_bytes"]
    (timing,) = finished.glob("stages/*-latency/details.json")
    runs = json.loads(timing.read_text())["records"]
    assert set(runs) == {
        "baseline", "final", "02-prune", "stages/05-references/1-resnet10t/model.onnx",
        "stages/05-references/2-cifar_resnet20/model.onnx",
    }  # fmt: skip
    for reference in report["references"]:
        assert set(reference["metrics"]) == set(report["final"])
        assert reference["latency_ratio"]["median"] > 0 and reference["metrics"]["onnx_parity_max_rel"] < 1e-4


def test_a_reference_is_trained_as_the_recipes_own_model_is(finished: Path) -> None:
    """The same network from the same seed with the same settings ends with the same weights."""
    report = json.loads((finished / "report.json").read_text())
    same, own = report["references"][1]["metrics"], report["baseline"]
    assert [same[key] for key in ("loss", "top1", "macs")] == [own[key] for key in ("loss", "top1", "macs")]
    bundle = Bundle.load(finished / "stages" / "05-references" / "1-resnet10t")
    data = DigitsConfig(**{key: value for key, value in RECIPE["data"].items() if key != "name"}, name="digits").load(
        bundle.task.config, bundle.preprocessing.to_dict()
    )
    assert data is not None and data.test is not None
    found = evaluate(bundle.model, data.test, data.task)
    assert found["loss"] == pytest.approx(report["references"][0]["metrics"]["loss"], rel=1e-4)


def test_the_page_tells_what_each_stage_did(finished: Path) -> None:
    story = story_of(read_report(finished))
    assert story.columns == ["Top-1", "Loss", "MACs", "Parameters", "ONNX file", "Latency, ms", "As fast"]
    rows = {row.name: dict(zip(story.columns, row.figures, strict=True)) for row in story.stages}
    assert rows["dense"]["MACs"][1] == "" and rows["prune"]["MACs"][1].startswith("\N{MINUS SIGN}")
    assert rows["finetune"]["MACs"][1] == ""
    top1 = [float(rows[name]["Top-1"][0].exact or "nan") for name in ("prune", "finetune")]
    change = rows["finetune"]["Top-1"][1]
    assert change == "" if top1[0] == top1[1] else f"{abs(top1[1] - top1[0]):.2f}" in change
    text = write_report(finished).read_text()
    chart = text[text.index("<figure>") : text.index("</figure>")]
    named = ", ".join(re.findall(r'class="mark">([^<]*)</text>', chart)).split(", ")  # those that meet share a text
    assert {"dense", "prune", "resnet10t", "cifar_resnet20"} <= set(named)


def test_the_same_file_is_timed_once_so_that_a_stage_that_left_the_model_as_it_was_changes_no_figure(
    finished: Path, tmp_path: Path
) -> None:
    small, dense = finished / "model.onnx", finished / "stages" / "01-dense" / "model.onnx"
    again = shutil.copy(small, tmp_path / "again.onnx")
    files = {"baseline": dense, "final": small, "02-prune": dense, "03-finetune": again, "beside": dense}
    assert twins(files) == {
        "baseline": "baseline", "final": "final", "02-prune": "02-prune", "03-finetune": "final", "beside": "02-prune"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"references": {"networks": ["resnet10"]}}, r"references\.networks\.0\.name: timm has no model 'resnet10'"),
        ({"train": None}, r"references\.networks\.1: cifar_resnet20 has no weights; it needs a section train"),
        ({"references": {"networks": []}}, r"references\.networks: out of range; got \[\]"),
        ({"references": {"networks": [3]}}, r"references\.networks\.0"),
    ],
)
def test_what_cannot_be_a_reference_is_refused_by_its_key(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(written(tmp_path, **sections))


def test_a_reference_may_say_its_input_size(tmp_path: Path) -> None:
    sized = {"source": "builtin", "name": "cifar_resnet20", "input_size": [3, 8, 8]}
    networks = load_recipe(written(tmp_path, references={"networks": [sized]})).section("references").networks
    assert networks[0].input_size == (3, 8, 8)


def test_a_reference_that_does_not_fit_the_data_is_refused_before_any_training(tmp_path: Path) -> None:
    recipe = written(tmp_path, references={"networks": [{"name": "resnet10t", "kwargs": {"depth": 3}}]})
    with pytest.raises(InputError, match=r"references\.networks\.0: resnet10t: model\.kwargs"):
        run(recipe, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
