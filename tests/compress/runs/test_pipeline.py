from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.bundle import Bundle
from compress.core.errors import CompressError, InputError
from compress.graph.apply import apply
from compress.graph.plan import Plan
from compress.prune.narrow import shrunk
from compress.report.curves import training_curves
from compress.report.results import read_run
from compress.runs.directory import RunDirectory
from compress.runs.pipeline import run
from compress.runs.recipe import load_recipe
from evaluators.datasets import Preprocessing
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig
from tests.support.processes import Child

METRICS = {
    "top1", "top5", "loss", "params", "nonzero_params", "macs", "nonzero_macs",
    "onnx_bytes", "onnx_parity_max_rel", "latency_ms",
}  # fmt: skip


def report_of(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "report.json").read_text()))


def state(path: Path) -> dict[str, torch.Tensor]:
    return compress.load(path).state_dict()


def same_weights(one: Path, other: Path) -> bool:
    first, second = state(one), state(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_the_directory_of_the_contract(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names == {"recipe.yaml", "report.json", "report.html", "model.onnx", "bundle", "stages", "log.jsonl"}
    stages = sorted(path.name for path in (finished_run / "stages").iterdir())
    assert stages == ["01-dense", "02-prune", "03-finetune", "04-export", "05-latency"]
    for stage in stages:
        assert (finished_run / "stages" / stage / "metrics.json").is_file()
        assert Bundle.load(finished_run / "stages" / stage).task.num_outputs == 10
    for line in (finished_run / "log.jsonl").read_text().splitlines():
        assert {"time", "event"} <= json.loads(line).keys()


def test_report_json_has_the_schema_of_the_contract(finished_run: Path) -> None:
    report = report_of(finished_run)
    assert report.keys() == {
        "schema", "name", "recipe_sha256", "seed", "environment", "stages", "baseline", "final", "latency_ratio",
        "efficiency", "task",
    }  # fmt: skip
    assert report["schema"] == 1
    assert report["task"] == {"name": "classification", "main_metric": "top1", "direction": "maximize"}
    for metrics in (report["baseline"], report["final"]):
        assert metrics.keys() == METRICS
        assert metrics["latency_ms"].keys() >= {"p10", "p50", "p90", "p99", "min", "cpu_p50", "runs", "threads"}
    assert report["latency_ratio"].keys() == {"median", "ci95", "blocks"}
    expected = report["latency_ratio"]["median"] / (report["baseline"]["macs"] / report["final"]["macs"])
    assert report["efficiency"] == pytest.approx(expected)


def test_every_epoch_is_drawn_once_in_the_curves_of_its_stage(finished_run: Path) -> None:
    events = [event for event in read_run(finished_run).events if event["event"] == "epoch"]
    assert [(event["stage"], event["number"], event["epoch"]) for event in events] == [
        ("dense", 1, 1), ("dense", 1, 2), ("finetune", 3, 1), ("finetune", 3, 2)
    ]  # fmt: skip
    for curve in training_curves(events, DEFAULT.metrics[0]):
        lines = [line for chart in curve.charts for line in re.findall(r'points="([^"]*)"', chart)]
        assert [len(line.split()) for line in lines] == [2, 2, 2], "loss in training and test, top-1 in test"
        assert f"<h3>{curve.stage}</h3>" in (finished_run / "report.html").read_text()


def test_nonzero_params_are_counted_by_the_masks(finished_run: Path) -> None:
    final, bundle = report_of(finished_run)["final"], Bundle.load(finished_run)
    assert bundle.masks is not None
    masked = sum(mask.numel() - int(mask.sum()) for mask in bundle.masks.values())
    total = sum(mask.numel() for mask in bundle.masks.values())
    assert final["params"] - final["nonzero_params"] == masked
    assert masked == pytest.approx(0.55 * total, abs=3)
    for name, mask in bundle.masks.items():
        assert not bundle.model.get_parameter(name)[~mask].any()


def test_two_runs_of_a_recipe_agree(finished_run: Path, quick: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**quick, "export": None, "latency": None}
    again = run("dimap_swin.yaml", overrides, out=tmp_path / "again", device="cpu")
    assert same_weights(finished_run, again.directory)
    first, second = report_of(finished_run)["final"], again.report["final"]
    assert {key: first[key] for key in ("top1", "loss", "macs")} == {
        key: second[key] for key in ("top1", "loss", "macs")
    }
    assert second["onnx_bytes"] is None
    assert again.report["latency_ratio"] is None


def test_a_recipe_without_data_has_null_accuracies(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nname: nodata\nmodel: {source: builtin, name: cifar_resnet20}\ndata: {name: none}\n"
        "prune: {kind: weights, criterion: magnitude, sparsity: 0.5}\n"
    )
    result = run(recipe, out=tmp_path / "out", device="cpu")
    assert result.report["final"]["top1"] is None
    assert result.report["final"]["nonzero_params"] < result.report["baseline"]["params"]


def test_a_budget_in_steps_is_fine_tuned_between_and_met(quick: dict[str, Any], tmp_path: Path) -> None:
    overrides = {
        **quick, "export": None, "latency": None, "train.epochs": 1, "prune.align": 1, "prune.steps": 2,
        "prune.sensitivity": True, "prune.blocks": 0, "data.limit_test": 20,
    }  # fmt: skip
    result = run("dimap_swin_channels.yaml", overrides, out=tmp_path / "out", device="cpu")
    names = [stage["name"] for stage in result.report["stages"]]
    assert names == ["dense", "prune", "finetune", "prune", "finetune"]
    macs = [stage["metrics"]["macs"] / result.report["baseline"]["macs"] for stage in result.report["stages"]]
    assert macs[1] == pytest.approx(0.75, abs=0.02)
    assert macs[-1] == pytest.approx(0.5, abs=0.02)
    details = json.loads((tmp_path / "out" / "stages" / "04-prune" / "details.json").read_text())
    assert {row["ratio"] for row in details["sensitivity"]} >= {0.5}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<h3>Sensitivity</h3>") == 2 and page.count(details["sensitivity"][0]["group"]) >= 2
    curves = training_curves(read_run(tmp_path / "out").events, DEFAULT.metrics[0])
    assert [curve.stage for curve in curves] == ["01-dense", "03-finetune", "05-finetune"]
    bundle = Bundle.load(result.directory)
    with torch.no_grad():
        first, second = bundle.model(bundle.example_inputs()), result.load()(bundle.example_inputs())
    assert torch.equal(first, second)


def test_merged_channels_make_a_smaller_model_that_reloads(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nname: merged\nmodel: {source: builtin, name: cifar_resnet20}\ndata: {name: none}\n"
        "prune: [{kind: merge, beta: 1.0, max_ratio: 0.3}, {kind: weights, criterion: magnitude, sparsity: 0.5}]\n"
    )
    result = run(recipe, out=tmp_path / "out", device="cpu")
    baseline, final = result.report["baseline"], result.report["final"]
    assert final["macs"] < baseline["macs"]
    assert final["nonzero_params"] < 0.6 * final["params"] < 0.6 * baseline["params"]
    bundle = Bundle.load(result.directory)
    with torch.no_grad():
        first, second = bundle.model(bundle.example_inputs()), result.load()(bundle.example_inputs())
    assert torch.equal(first, second)


def test_masks_follow_their_weights_through_a_later_plan() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    masks = {"0.weight": torch.rand(6, 4) > 0.5, "1.weight": torch.rand(2, 6) > 0.5}
    plan = Plan(kept={"0.weight": {0: (0, 2, 5)}, "0.bias": {0: (0, 2, 5)}, "1.weight": {1: (0, 2, 5)}})
    bundle = Bundle(
        model,
        ModelConfig(name="two"),
        DEFAULT.bind(2, (1, 2, 2)),
        Preprocessing((1, 2, 2), (0.5,), (0.5,)),
        masks=masks,
    )
    narrowed = shrunk(bundle, plan, apply(plan, model)).masks
    assert narrowed is not None
    assert torch.equal(narrowed["0.weight"], masks["0.weight"][[0, 2, 5]])
    assert torch.equal(narrowed["1.weight"], masks["1.weight"][:, [0, 2, 5]])


def test_a_finished_run_is_kept_and_shown_again_on_resume(finished_run: Path, quick: dict[str, Any]) -> None:
    before = (finished_run / "report.json").read_bytes()
    with pytest.raises(InputError, match="finished run"):
        run("dimap_swin.yaml", quick, out=finished_run)
    assert run("dimap_swin.yaml", quick, out=finished_run, resume=True).report == report_of(finished_run)
    assert (finished_run / "report.json").read_bytes() == before


def test_resume_of_another_recipe_is_refused_by_the_keys_that_differ(finished_run: Path, quick: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"prune\.sparsity"):
        run("dimap_swin.yaml", {**quick, "prune.sparsity": 0.3}, out=finished_run, resume=True)


def test_a_directory_with_other_files_is_left_alone(quick: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match="other files"):
            run("dimap_swin.yaml", quick, out=tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_wrong_input_leaves_no_directory_behind(quick: dict[str, Any], tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(InputError, match=r"--set|overrides") as caught:
        run("dimap_swin.yaml", {**quick, "model.checkpoint": str(weights)}, out=tmp_path / "out", device="cpu")
    assert "model.checkpoint" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failing_stage_says_where_the_log_is_and_how_to_go_on(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("boom")

    overrides = {**quick, "export": None, "latency": None}
    monkeypatch.setattr("compress.runs.stages.prune.prune_bundle", broken)
    with pytest.raises(CompressError, match=r"prune failed: ZeroDivisionError: boom; log: .*log\.jsonl; go on with: "):
        run("dimap_swin.yaml", overrides, out=tmp_path / "out", device="cpu")
    events = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert "Traceback" in events[-1]["trace"]
    monkeypatch.undo()
    resumed = run("dimap_swin.yaml", overrides, out=tmp_path / "out", resume=True, device="cpu")
    assert [stage["name"] for stage in resumed.report["stages"]] == ["dense", "prune", "finetune"]


def test_a_run_killed_while_fine_tuning_ends_as_an_uninterrupted_one(quick: dict[str, Any], tmp_path: Path) -> None:
    overrides = {**quick, "export": None, "latency": None, "finetune.epochs": 6, "finetune.checkpoint_seconds": 0}
    whole = run("dimap_swin.yaml", overrides, out=tmp_path / "whole", device="cpu")
    out = tmp_path / "killed"
    child = Child(run_with, overrides, out, torch.get_num_threads())
    _wait_for(out / "stages" / "03-finetune" / "checkpoint", child)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (out / "report.json").exists()
    resumed = run("dimap_swin.yaml", overrides, out=out, resume=True, device="cpu")
    assert same_weights(whole.directory, out)
    assert resumed.report["final"] == whole.report["final"]
    assert resumed.report["baseline"] == whole.report["baseline"]


def run_with(overrides: dict[str, Any], out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    run("dimap_swin.yaml", overrides, out=out, device="cpu")


def _wait_for(folder: Path, child: Child) -> None:
    """Wait until a checkpoint lies in `folder`."""
    for _ in range(2400):
        if folder.is_dir() and any(folder.iterdir()):
            return
        assert child.process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("no checkpoint was written")


def test_overrides_of_a_loaded_recipe_are_refused() -> None:
    with pytest.raises(InputError, match="overrides"):
        run(load_recipe("dimap_swin.yaml"), {"seed": 1})


def hold(out: Path, told: Path) -> None:
    held = RunDirectory(out).hold()
    told.touch()
    time.sleep(60)
    held()


def test_a_directory_in_which_another_process_works_is_refused_and_kept(quick: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    other = Child(hold, out, tmp_path / "held")
    while other.process.is_alive() and not (tmp_path / "held").exists():
        time.sleep(0.02)
    recipe = load_recipe("dimap_swin.yaml", quick)
    recipe.save(out / "recipe.yaml")
    try:
        with pytest.raises(InputError, match="another process is running"):
            run(recipe, out=out, device="cpu", resume=True)
        assert (out / "recipe.yaml").is_file()
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("given", "words"),
    [({"out": 3}, "out: got 3; allowed"), ({"out": "x", "overrides": [("seed", 1)]}, "overrides: got .*; allowed")],
)
def test_arguments_of_python_that_are_none_are_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        run("resnet_digits.yaml", **given)
    with pytest.raises(InputError, match=r"^bundle: got None; allowed"):
        compress.load(None)  # type: ignore[arg-type]
