"""The section `quantize` in a run: which file is model.onnx, whose figures are reported, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import compress
from compress.bundle import Bundle, open_model
from compress.cli import app
from compress.core.errors import CompressError, InputError
from compress.report import summary_of
from compress.runs.dry_run import dry_run
from compress.runs.evaluation import evaluate_file
from compress.runs.recipe import load_recipe
from compress.training.trainer import Trainer
from evaluators.latency.measure import Comparison, LatencyConfig
from evaluators.tasks.evaluation import evaluate
from spaces.zoo import ModelConfig

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "model": {
        "source": "space",
        "name": "resnet_shapes",
        "kwargs": {"options": {"depth": 8}, "arch": "16/16-16/32-32/64-64"},
    },
    "data": {"name": "digits", "image_size": 16, "limit_train": 400, "limit_test": 100, "batch_size": 40},
    "train": {"epochs": 1, "lr": 3.0e-3},
    "export": {"exporter": "torchscript", "dynamic_size": True},
    "quantize": {"method": "static", "calibration": 50, "judged": 100, "max_drop": 20},
    "latency": {"runs": 3, "seconds": 0, "max_seconds": 1},
}


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**RECIPE, **sections}.items() if value is not None}))
    return path


def faster(ratio: float) -> Any:
    """A measurement in which files of fewer bits are so much faster."""

    def answer(files: list[Path], config: LatencyConfig) -> Comparison:
        found = {"median": ratio, "ci95": [ratio - 0.01, ratio + 0.01], "blocks": 9, "clock": "wall"}
        return Comparison([], [found] * (len(files) - 1))

    return answer


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.quantize.choose.interleave", faster(2.0))
        return compress.run(written(folder), out=folder / "run", device="cpu").directory


def test_figures_are_those_of_the_file_that_is_model_onnx(quantized):
    report = json.loads((quantized / "report.json").read_text())
    recipe = load_recipe(quantized / "recipe.yaml")
    found = evaluate_file(quantized / "model.onnx", recipe)
    of_floats = evaluate_file(quantized / "model.float.onnx", recipe)
    for metric in ("top1", "loss"):
        assert report["final"][metric] == pytest.approx(found[metric])
        assert report["baseline"][metric] == pytest.approx(of_floats[metric], rel=1e-4)
    assert found["loss"] != of_floats["loss"]
    assert report["final"]["onnx_bytes"] == (quantized / "model.onnx").stat().st_size
    assert report["final"]["onnx_bytes"] < 0.5 * report["baseline"]["onnx_bytes"]
    latencies = [report[model]["latency_ms"]["p50"] for model in ("baseline", "final")]
    assert latencies[0] != latencies[1] and report["latency_ratio"]["median"] > 0  # which is faster, the processor says


def test_what_is_said_of_a_run_names_the_file_that_its_figures_are_not_of(quantized):
    found = CliRunner().invoke(app, ["eval", str(quantized)])
    assert found.exit_code == 0 and f"compress eval {quantized / 'model.onnx'}" in found.stderr


def test_parity_is_of_the_float_file_alone_and_agreement_of_the_other(quantized):
    report = json.loads((quantized / "report.json").read_text())
    assert report["baseline"]["onnx_parity_max_rel"] < 1e-5
    assert report["final"]["onnx_parity_max_rel"] is None
    assert 50 < report["quantized"]["agreement"] <= 100


def test_details_tell_types_layers_and_images(quantized):
    (file,) = quantized.glob("stages/*-quantize/details.json")
    found = json.loads(file.read_text())["quantized"]
    assert (found["activation_type"], found["weight_type"]) in (
        ("QUInt8", "QInt8"),
        ("QUInt8", "QUInt8"),
        ("QInt8", "QInt8"),
    )
    assert found["integer_layers"] == found["layers"] == 10
    assert found["calibration"] == {"images": 50, "method": "minmax"}
    assert found["judged"]["images"] == 100 and found["test"]["images"] == 100


def test_page_and_summary_say_so(quantized):
    assert "INT8 in 10 of 10 layers" in summary_of(quantized)
    page = (quantized / "report.html").read_text()
    assert 'id="quantized"' in page and "model.float.onnx" in page


def test_a_run_killed_after_the_stage_ends_as_it_would_have(quantized, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(quantized, run)
    whole = json.loads((run / "report.json").read_text())
    (run / "report.json").unlink()
    (latency,) = run.glob("stages/*-latency")
    shutil.rmtree(latency)
    floats = (run / "model.float.onnx").read_bytes()
    (run / "model.onnx").write_bytes(floats)
    again = compress.run(load_recipe(run / "recipe.yaml"), out=run, resume=True, device="cpu").report
    for side in ("baseline", "final"):
        assert {**again[side], "latency_ms": None} == {**whole[side], "latency_ms": None}
    assert again["quantized"] == whole["quantized"]
    assert (run / "model.onnx").read_bytes() == (quantized / "model.onnx").read_bytes() != floats


def test_the_float_file_stays_where_integers_are_not_faster(quantized, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(quantized, run)
    (run / "report.json").unlink()
    for stage in [*run.glob("stages/*-quantize"), *run.glob("stages/*-latency")]:
        shutil.rmtree(stage)
    floats = (run / "model.float.onnx").read_bytes()
    (run / "model.onnx").write_bytes(floats)
    monkeypatch.setattr("compress.quantize.choose.interleave", faster(1.02))
    result = compress.run(load_recipe(run / "recipe.yaml"), out=run, resume=True, device="cpu")
    assert (run / "model.onnx").read_bytes() == floats
    assert not (run / "model.float.onnx").exists()
    assert result.report["final"]["onnx_bytes"] == len(floats)
    assert result.report["final"]["top1"] == result.report["baseline"]["top1"]
    assert "float (INT8 not kept)" in result.summary
    (file,) = run.glob("stages/*-quantize/details.json")
    assert "1.05× is needed" in json.loads(file.read_text())["notes"][0]


TRAINED = {
    **RECIPE["quantize"],
    "finetune": {"epochs": 2, "lr": 1.0e-4, "checkpoint_seconds": 0, "distill": {"loss": "kd"}},
}


@pytest.fixture(scope="module")
def learnt(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose section trains beforehand, and which says that this was worth it."""
    run = tmp_path_factory.mktemp("learnt") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.quantize.choose.interleave", faster(2.0))
        patch.setattr("evaluators.tasks.task.Metric.better", lambda self, value, other: True)
        return compress.run(written(run.parent, quantize=TRAINED), out=run, device="cpu").directory


def details_of(run: Path) -> dict[str, Any]:
    (file,) = run.glob("stages/*-quantize/details.json")
    return json.loads(file.read_text())


def test_trained_weights_are_in_the_bundle_and_in_both_files(quantized, learnt):
    before, after = (compress.load(run).state_dict() for run in (quantized, learnt))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    report, recipe = json.loads((learnt / "report.json").read_text()), load_recipe(learnt / "recipe.yaml")
    found = details_of(learnt)["quantized"]["finetuned"]
    assert found["kept"] and found["rounded"][0] == found["rounded"][1]
    assert found["judged"]["images"] == 100 and found["difference"][1] < 0.2 * found["difference"][0]
    figures = {"floats": report["baseline"]["top1"], "with": report["final"]["top1"]}
    assert {name: found["test"][name] for name in figures} == pytest.approx(figures)
    assert report["final"]["loss"] == pytest.approx(evaluate_file(learnt / "model.onnx", recipe)["loss"])
    floats = evaluate_file(learnt / "model.float.onnx", recipe)["loss"]
    assert floats == pytest.approx(evaluate_bundle(learnt, recipe), rel=1e-4) != report["baseline"]["loss"]
    assert "Training for integers" in (learnt / "report.html").read_text()


def evaluate_bundle(run: Path, recipe: Any) -> float:
    bundle = Bundle.load(run)
    opened = open_model(ModelConfig(source="bundle", name=str(run)), recipe.data, 0, recipe.task)
    return evaluate(bundle.model, opened.data.test, opened.data.task)["loss"]


def test_weights_that_are_no_better_are_not_taken(quantized, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.quantize.choose.interleave", faster(2.0))
    section = {**TRAINED, "finetune": {"epochs": 1, "lr": 1.0, "warmup_epochs": 0, "optimizer": "sgd"}}
    run = compress.run(written(tmp_path, quantize=section), out=tmp_path / "run", device="cpu").directory
    found = details_of(run)
    assert found["quantized"]["finetuned"]["kept"] is False and "weights from before" in found["notes"][0]
    before, after = (compress.load(each).state_dict() for each in (quantized, run))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_killed_training_goes_on_and_ends_with_the_same_file(learnt, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr("compress.quantize.choose.interleave", faster(2.0))
    monkeypatch.setattr("evaluators.tasks.task.Metric.better", lambda self, value, other: True)
    shutil.copytree(learnt, run)
    for gone in (run / "report.json", *run.glob("stages/*-quantize"), *run.glob("stages/*-latency")):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    shutil.copyfile(run / "model.float.onnx", run / "model.onnx")
    (export,) = run.glob("stages/*-export")
    shutil.copyfile(export.parent / "01-dense" / "model.onnx", run / "model.onnx")

    class Killed(Exception):
        pass

    save = Trainer._save

    def killed(self: Trainer) -> None:
        save(self)
        if self.label == "training for integers" and self.position.epoch == 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", killed)
        with pytest.raises(CompressError, match="quantize failed"):
            compress.run(load_recipe(run / "recipe.yaml"), out=run, resume=True, device="cpu")
    compress.run(load_recipe(run / "recipe.yaml"), out=run, resume=True, device="cpu")
    assert (run / "model.onnx").read_bytes() == (learnt / "model.onnx").read_bytes()
    first, again = (compress.load(each).state_dict() for each in (learnt, run))
    assert all(torch.equal(first[name], again[name]) for name in first)


DETECTOR = {"source": "torchvision", "name": "fcos_resnet50_fpn"}
TRANSFORMER = {"source": "timm", "name": "vit_tiny_patch16_224", "kwargs": {"depth": 4, "embed_dim": 48}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"quantize": {"finetune": {}, "method": "dynamic"}}, "finetune: trains for the rounding of static files"),
        ({"quantize": {"types": "bf16"}}, "quantize.types: .* no kernels of bf16.*allowed: int8, fp16"),
        ({"quantize": {"finetune": {}, "types": "fp16"}}, "finetune: of types int8 alone"),
        ({"quantize": {"finetune": {}}, "data": {"name": "none"}, "train": None}, "needs images"),
        ({"quantize": {"finetune": {}}, "model": TRANSFORMER}, "auto tries none for a model of which .* convolutions"),
        ({"quantize": {"finetune": {}, "calibration": 399}}, "judge by and to learn from; got 399; allowed 1 to 398"),
        ({"quantize": {"finetune": {"distill": {"loss": "kdd"}}}}, "quantize.finetune.distill"),
        (
            {"quantize": {"finetune": {}, "max_drop": 1}, "task": {"name": "detection"}, "model": DETECTOR},
            "finetune: models of task detection have no loss of what they give in a file",
        ),
        ({"export": None, "latency": None}, "needs an export section"),
        ({"data": {"name": "none"}, "train": None}, "needs images to calibrate and to judge by"),
        ({"quantize": {"calibration": 400}}, r"quantize.calibration.*got 400; allowed 1 to 399"),
        ({"quantize": {"exclude": ["stages.9.*"]}}, r"quantize.exclude.*'stages.9.\*' matches no layer"),
        ({"quantize": {"exclude": ["stages.0.0.*.bn"]}}, "quantize.exclude.* matches no layer that multiplies"),
        ({"quantize": {"types": "fp16", "method": "dynamic"}}, "method: of types int8 alone"),
        ({"quantize": {"method": "dynamic", "calibrate": "entropy"}}, "calibrate: dynamic files take no ranges"),
        ({"quantize": {}, "latency": {"provider": "CUDAExecutionProvider"}}, "int8 files are written for CPU"),
        ({"quantize": {"max_drop": -1}}, "quantize.max_drop"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_before_any_training(tmp_path, sections, said):
    with pytest.raises(InputError, match=f"(?s){said}"):
        dry_run(load_recipe(written(tmp_path, **sections)), "cpu")
