"""`compress pick` from the front of a pruning to several budgets: the rules are those of a family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter
from small_families import RESNET
from typer.testing import CliRunner

import compress
from compress.bundle import Bundle, open_model
from compress.cli import app
from compress.export.exporters import ExportConfig
from compress.graph.plan import Plan
from compress.prune.allocation.allocator import Allocation
from compress.prune.allocation.front import sentence, written
from compress.prune.allocation.front_members import Front
from compress.prune.allocation.meet import Met, Timing
from compress.prune.budget import BudgetConfig
from compress.prune.kinds import Details, Surroundings
from compress.prune.narrow import shrunk
from compress.prune.structure_config import StructureConfig
from evaluators.datasets import DataConfig
from evaluators.latency.measure import LatencyConfig
from spaces.zoo import ModelConfig

LATENCIES, TOP1 = (0.7, 0.5, 0.3), (60.0, 90.0, 30.0)
DENSE_MS = 4.0


def small_front(stage: Path) -> None:
    """Write the front of an untrained network to the directory of a stage; the second of three models is the best."""
    none: Any = TypeAdapter(DataConfig).validate_python({"name": "none"})
    bundle = open_model(ModelConfig.model_validate(RESNET), none).bundle
    config = StructureConfig.model_validate({"kind": "structure", "budgets": [{"latency": each} for each in LATENCIES]})
    around = Surroundings(
        None, "cpu", 0, LatencyConfig(), ExportConfig(exporter="torchscript", opset=17), directory=stage
    )

    def cut(plan: Plan) -> tuple[Bundle, Details]:
        return shrunk(bundle, plan, compress.apply(plan, bundle.model).eval()), {"notes": []}

    fitted = []
    for share in LATENCIES:
        plan = compress.plan(bundle.model, bundle.example_inputs(), budget={"macs": share})
        timing = Timing(share, share, share, share * DENSE_MS, DENSE_MS)
        fitted.append((Met(BudgetConfig(latency=share), Allocation({}, (), 1 / share, 0.0), share, timing), plan))
    written(fitted, cut, config, around)


def edited(stage: Path, **changes: Any) -> None:
    """Change a key of every row of front/index.json to that of as many values."""
    file = stage / "front" / "index.json"
    rows = json.loads(file.read_text())
    for key, values in changes.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = row[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose front was made without data."""
    run = tmp_path_factory.mktemp("unjudged")
    small_front(run / "stages" / "02-prune")
    return run


@pytest.fixture
def run(unjudged: Path, tmp_path: Path) -> Path:
    """The directory of a run with a front."""
    run = tmp_path / "run"
    shutil.copytree(unjudged, run)
    edited(run / "stages" / "02-prune", metrics=[{"top1": value} for value in TOP1])
    return run


def pick(*words: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, ["pick", "--quiet", *map(str, words)])
    assert found.exit_code == code, found.output
    return found.output


def test_the_best_model_within_the_budget_is_handed_out_with_its_own_file(run: Path) -> None:
    front = run / "stages" / "02-prune" / "front"
    told = json.loads(pick(run, "--latency", "3ms", "--json"))
    place = run / "picks" / "latency-3ms"
    assert told == json.loads((place / "pick.json").read_text())
    assert (told["member"], told["front"], told["arch"]) == (1, str(front), {"latency": 0.5})
    assert told["metrics"]["top1"] == 90.0 and told["latency_ms"]["p50"] == 2.0
    assert (place / "model.onnx").read_bytes() == (front / "latency-0.5" / "model.onnx").read_bytes()
    assert told["onnx_bytes"] == (place / "model.onnx").stat().st_size

    shutil.rmtree(run / "stages")  # the pick needs nothing of the front
    bundle = Bundle.load(place)
    assert bundle.metrics["top1"] == 90.0 and bundle.metrics["macs"] == told["macs"]
    assert bundle.provenance[-1] == {"stage": "pick", "member": 1, "budget": "--latency 3ms"}
    images = bundle.example_inputs(3)
    (logits,) = onnxruntime.InferenceSession(str(place / "model.onnx")).run(None, {"input": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, bundle.model(images).numpy(), rtol=1e-4, atol=1e-4)


def test_fractions_are_of_the_model_before_the_pruning_and_all_limits_hold_together(run: Path) -> None:
    front = Front.load(run)
    assert json.loads(pick(run, "--macs", "0.75", "--json"))["member"] == 1
    assert json.loads(pick(run, "--latency", "0.4", "--json"))["member"] == 2
    assert json.loads(pick(run, "--params", f"{front.members[2].params}", "--json"))["member"] == 2
    size = sorted(each.onnx_bytes or 0 for each in front.members)[0]
    line = pick(run, "--size", f"{size / 1e3}KB", "--latency", "1", "--out", run / "least")
    assert line.startswith(f"{run / 'least'}  top-1 30  1.2")
    assert front.full.macs > max(each.macs for each in front.members)


def test_a_fraction_is_held_against_the_share_that_was_measured_not_against_times_that_drift(run: Path) -> None:
    edited(run / "stages" / "02-prune", latency_ms=[0.72 * DENSE_MS, 0.53 * DENSE_MS, 0.31 * DENSE_MS])
    assert json.loads(pick(run, "--latency", "0.5", "--json"))["member"] == 1
    assert json.loads(pick(run, "--latency", f"{0.52 * DENSE_MS}ms", "--json"))["member"] == 2
    assert "(0.300 of the full network's)" in pick(run, "--latency", "0.29", code=2)


def test_a_model_that_is_slower_and_worse_is_none_of_all_fronts(run: Path, tmp_path: Path) -> None:
    pick(run, "--all-fronts", "--out", tmp_path / "all")
    index = json.loads((tmp_path / "all" / "index.json").read_text())
    assert [each["member"] for each in index["members"]] == [2, 1]  # the first is slower than the second, and worse
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["01.onnx", "02.onnx", "index.json"]


def test_of_a_run_with_both_it_is_the_family_unless_the_front_is_named(run: Path) -> None:
    stage = run / "stages" / "02-prune"
    (run / "family").mkdir()
    (run / "family" / "family.json").write_text("{}")  # only one that is read is found to be damaged
    assert "is no index of a family" in pick(run, "--macs", "1", code=2)
    for named in (stage, stage / "front"):
        assert json.loads(pick(named, "--macs", "1", "--json"))["front"] == str(stage / "front")
    assert (stage / "picks" / "macs-1").is_dir()


def test_without_metrics_the_least_loss_of_the_pruning_decides(unjudged: Path, tmp_path: Path) -> None:
    told = json.loads(pick(unjudged, "--latency", "3ms", "--json", "--out", tmp_path / "a"))
    assert told["member"] == 0 and told["metrics"]["top1"] is None
    assert "pruning_loss 1.42857" in pick(unjudged, "--latency", "3ms", "--out", tmp_path / "b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--latency", "1ms"], "--latency  no member is within 1ms; the smallest of the members takes 1.2"),
        (["--size", "0.5"], "--size  a fraction of the full network's size, which was not measured"),
        (["--latency", "3ms", "--measure"], "--measure  goes with a family"),
    ],
)
def test_what_cannot_be_picked_is_one_sentence(run: Path, words: list[str], said: str) -> None:
    output = pick(run, *words, code=2)
    assert output.startswith(said) and "add --measure" not in output
    assert len(output.strip().splitlines()) == 1
    assert not (run / "picks").exists()


def test_a_damaged_front_is_one_sentence_and_leaves_nothing(run: Path) -> None:
    stage = run / "stages" / "02-prune"
    front, index = stage / "front", stage / "front" / "index.json"
    text = index.read_text()
    for damaged in (text[:90], "{}", "[]", "[1]", text.replace('"latency_ms": 2.0', '"latency_ms": -2.0')):
        index.write_text(damaged)
        assert pick(run, "--macs", "1", code=2).startswith(str(index))
    index.write_text(text)
    edited(stage, macs=[[10, 5]] * 3)
    assert "it is another network" in pick(run, "--macs", "1", code=2)
    index.write_text(text)
    shutil.copyfile(front / "latency-0.3" / "model.onnx", front / "latency-0.5" / "model.onnx")
    assert "is not the file of its bundle" in pick(run, "--macs", "1", code=1)
    (front / "latency-0.5" / "model.onnx").write_bytes(b"")
    assert "is not the file of its bundle" in pick(run, "--macs", "1", code=1)
    (front / "latency-0.5" / "model.onnx").unlink()
    assert "there is no such ONNX file" in pick(run, "--macs", "1", code=2)
    assert not list(run.glob("picks/*"))


def test_times_of_the_processor_are_told_as_such(run: Path) -> None:
    edited(run / "stages" / "02-prune", contended=[True] * 3, by_cpu=[True] * 3)
    assert "2.00 ms of CPU time" in pick(run, "--latency", "3ms")
    told = json.loads((run / "picks" / "latency-3ms" / "pick.json").read_text())
    assert (told["latency_ms"]["cpu_p50"], told["latency_ms"]["p50"]) == (2.0, None)
    row = json.loads((run / "stages" / "02-prune" / "front" / "index.json").read_text())[1]
    assert "(2 of 4 ms of CPU time)" in sentence(row) and "(2 of 4 ms)" in sentence(row | {"by_cpu": False})
