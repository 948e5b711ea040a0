"""Pruning to latencies as a recipe does, on a target whose times are known: a staircase in the widths, added up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import compress
from compress.bundle import Bundle
from compress.core.errors import CompressError, InputError
from compress.core.problems import validated
from compress.export.exporters import ExportConfig
from compress.latency_model import build, survey
from compress.latency_model.build import latency_model
from compress.prune import by_latency, narrow
from compress.prune.allocation import front as fronts
from compress.prune.allocation.front import sentence
from compress.prune.allocation.losses import measured_losses
from compress.prune.structure_config import StructureConfig
from evaluators.latency.measure import Comparison, LatencyConfig
from evaluators.latency.operators import Operator, Timed, TimedFile
from evaluators.latency.width_multiple import WidthMultiple

CONSTANT, FACTOR = 0.02, 1.1


def operators(file: Path) -> list[Operator]:
    """Every convolution of 3x3 takes a product of two stairs of 8 channels; nothing else takes time."""
    graph = onnx.load(file).graph
    shapes = {each.name: list(each.dims) for each in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and shapes[node.input[1]][2] == 3]
    sizes = [shapes[node.input[1]] for node in convolutions]
    times = [0.01 * math.ceil(out / 8) * math.ceil(into / 8) for out, into, *_ in sizes]
    return [Operator(node.name, "Conv", ms, []) for node, ms in zip(convolutions, times, strict=True)]


def takes(file: Path) -> float:
    return CONSTANT + FACTOR * sum(each.ms for each in operators(file))


class Target:
    """Counts what it is asked; whole networks take a little more than their parts say."""

    def __init__(self) -> None:
        self.surveys, self.sessions = 0, 0

    def time_operators(self, files: Sequence[Path], config: LatencyConfig, seconds: float) -> Timed:
        self.surveys += 1
        models = [TimedFile(ms=takes(file), operators=operators(file)) for file in files]
        return Timed(models=models, clock="cpu", passes=1, waited=0.0, stolen=0.0, contended=False)

    def interleave(self, files: Sequence[Path], config: LatencyConfig) -> Comparison:
        self.sessions += 1
        dense, *small = [takes(file) ** 0.9 for file in files]
        records: list[Any] = [SimpleNamespace(p50=ms, contended=False) for ms in (dense, *small)]
        ratios = [
            {"median": dense / ms, "ci95": [dense / ms * 0.99, dense / ms * 1.01], "clock": "wall"} for ms in small
        ]
        return Comparison(records, ratios)


def known(patch: pytest.MonkeyPatch) -> Target:
    """Put a target of known times into the place of what measures."""
    found = Target()
    patch.setattr(survey, "time_operators", found.time_operators)
    patch.setattr(survey, "runtime_of", lambda config: {})
    patch.setattr(build, "width_multiple", lambda target: WidthMultiple(8, "given"))
    patch.setattr(by_latency, "interleave", found.interleave)
    patch.setattr(by_latency, "latency_model", partial(latency_model, count=9))
    return found


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    return known(monkeypatch)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Target]:
    """The folder of a run to half of the latency, and what its target was asked."""
    path = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        found = known(patch)
        run(path, budget={"latency": 0.5})
    return path, found


def recipe(data: str = "digits", **prune: Any) -> dict[str, Any]:
    digits = {"name": "digits", "limit_train": 64, "limit_test": 20, "image_size": 8, "batch_size": 32}
    return {
        "version": 1,
        "name": "timed",
        "model": {"source": "builtin", "name": "cifar_resnet20", "kwargs": {}},
        "data": digits if data == "digits" else {"name": "none"},
        "prune": {"kind": "structure", "criterion": "magnitude", **prune},
        "export": {"exporter": "torchscript"},
        "latency": None,
    }


def run(path: Path, resume: bool = False, **prune: Any) -> compress.RunResult:
    file = path / "r.yaml"
    file.write_text(json.dumps(recipe(**prune)))
    return compress.run(str(file), out=path / "out", resume=resume, device="cpu")


def details(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "out/stages/02-prune/details.json").read_text())
    return found


def test_several_budgets_share_what_is_measured_and_leave_a_front(target: Target, tmp_path: Path) -> None:
    result = run(tmp_path, budgets=[{"latency": 0.7}, {"latency": 0.35}, {"latency": 0.5}])
    assert target.surveys == 1
    rows = details(tmp_path)["latencies"]
    assert [row["budget"]["latency"] for row in rows] == [0.7, 0.35, 0.5]
    for row in rows:
        assert row["latency"] == pytest.approx(row["budget"]["latency"], rel=0.03)
    assert rows[0]["loss"] < rows[2]["loss"] < rows[1]["loss"]
    front = tmp_path / "out/stages/02-prune/front"
    index = json.loads((front / "index.json").read_text())
    for row in index:
        bundle = Bundle.load(front / row["bundle"])
        assert bundle.costs()["macs"] == row["metrics"]["macs"]
        assert onnx.load(front / row["onnx"]).graph.node
        assert 0 <= row["metrics"]["top1"] <= 100
    assert Bundle.load(tmp_path / "out").costs()["macs"] == index[-1]["metrics"]["macs"]
    assert result.report["final"]["macs"] == index[-1]["metrics"]["macs"]
    page = (tmp_path / "out/report.html").read_text()
    assert "latency: 0.35" in page


def test_files_of_a_front_are_of_the_exporter_that_the_first_took_unless_it_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def export(model: Any, inputs: Any, path: Path, config: ExportConfig, *more: Any) -> Any:
        asked.append(config.exporter)
        if len(asked) == 3:
            raise CompressError("no exporter made a correct file")
        return SimpleNamespace(exporter="dynamo" if config.exporter == "auto" else config.exporter)

    monkeypatch.setattr(fronts, "export_onnx", export)
    bundle: Any = SimpleNamespace(
        model=None, task=None, inputs=None, example_inputs=lambda n: None, save=lambda p: None
    )
    config = ExportConfig()
    for name in "abc":
        _, exporter = fronts._files(bundle, tmp_path, name, config, ExportConfig())
        config = config.model_copy(update={"exporter": exporter})
    assert asked == ["auto", "dynamo", "dynamo", "auto"]
    asked[:] = [""] * 2
    with pytest.raises(CompressError):  # what was asked for failed
        fronts._files(bundle, tmp_path, "d", ExportConfig(), ExportConfig())


def test_what_was_measured_before_a_kill_is_not_measured_again(
    half: tuple[Path, Target], target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, asked = half

    def killed(*args: Any) -> Any:
        table = measured_losses(*args)
        args[-1].save()
        raise KeyboardInterrupt(table)

    with monkeypatch.context() as patch:
        patch.setattr(by_latency, "measured_losses", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, budget={"latency": 0.5})
    assert target.surveys == 1
    with monkeypatch.context() as patch:
        patch.setattr("compress.prune.allocation.losses._loss", lambda *args: pytest.fail("measured again"))
        again = run(tmp_path, resume=True, budget={"latency": 0.5})
    assert target.surveys == 1 and target.sessions == asked.sessions
    assert again.report["final"]["macs"] == json.loads((first / "out/report.json").read_text())["final"]["macs"]
    assert details(tmp_path)["latencies"] == details(first)["latencies"]


def test_losses_are_those_of_a_model_that_is_not_compensated_where_the_recipe_says_so(
    half: tuple[Path, Target], target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_latency.DenseStatistics, "collect", lambda *args, **more: pytest.fail("not asked for"))
    run(tmp_path, budget={"latency": 0.5}, compensate=False)
    compensated, plain = (details(path)["latencies"][0]["loss"] for path in (half[0], tmp_path))
    assert compensated < plain


def test_without_data_the_criterion_tells_what_is_lost_and_says_so(target: Target, tmp_path: Path) -> None:
    run(tmp_path, data="none", budget={"latency_ms": 0.5 * 0.9})
    found = details(tmp_path)
    assert found["latencies"][0]["latency_ms"] == pytest.approx(0.45, rel=0.03)
    assert any("no data" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ({"latency_ms": 50}, r"budget\.latency_ms: 50 ms removes nothing: the model takes .* ms as it is"),
        ({"latency": 0.02}, r"budget\.latency: 0\.02 cannot be met; the least .* is 0\.\d+ .*'layer\d.*of the dense"),
    ],
)
def test_what_cannot_be_met_is_refused_before_whole_networks_are_timed(
    target: Target, tmp_path: Path, budget: dict[str, float], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        run(tmp_path, data="none", budget=budget)
    assert target.sessions == 0


@pytest.mark.parametrize(
    ("prune", "text"),
    [
        ({"budget": {"latency": 0.5}, "blocks": 2}, "blocks compete with widths by themselves"),
        ({"budget": {"latency": 0.5}, "allocation": "uniform"}, "leave out allocation"),
        ({"budgets": [{"latency": 0.5}, {"macs": 0.5}]}, "got macs: 0.5; allowed latency, latency_ms"),
        ({"budgets": [{"latency": 0.5}, {"latency": 0.5}]}, "the same one twice"),
        ({"budgets": []}, "budgets"),
        ({"budget": {"latency": 0.5}, "budgets": [{"latency": 0.4}]}, "exactly one of budget, budgets and ratio"),
        ({"budget": {"latency_ms": 3.0}, "steps": 3}, "several steps go to one fraction"),
        ({"budget": {"latency": 0.5}, "steps": 11}, "11 steps to latency: 0.5 are less than 0.05.*up to 10"),
        ({"budget": {"latency_ms": math.inf}}, "latency_ms"),
    ],
)
def test_settings_that_say_nothing_are_refused(prune: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        validated(StructureConfig, {"kind": "structure", **prune})


@pytest.mark.parametrize("glob", ["layer2", "layer2.1.conv1:channels"])
def test_blocks_stay_that_an_excluded_layer_is_in(target: Target, tmp_path: Path, glob: str) -> None:
    run(tmp_path, data="none", budget={"latency": 0.4}, exclude=[glob], compensate=False)
    assert "layer2.1" not in details(tmp_path)["latencies"][0]["blocks_removed"]
    assert details(tmp_path)["latencies"][0]["blocks_removed"]


def test_a_step_makes_up_for_what_the_one_before_missed() -> None:
    config = validated(StructureConfig, {"kind": "structure", "budget": {"latency": 0.5}, "steps": 2})
    assert [budget.target for budget in narrow._budgets(config, 1, 1.0)] == [0.75]
    assert [budget.target for budget in narrow._budgets(config, 2, 0.77)] == [pytest.approx(0.5 / 0.77)]
    assert [budget.target for budget in narrow._budgets(config, 2, 0.4)] == [narrow.LEAST_STEP]


def test_a_latency_that_is_not_the_asked_one_is_told_so() -> None:
    row = {"budget": {"latency_ms": 2.0}, "latency": 0.53, "ci95": [0.4, 0.6], "latency_ms": 2.1, "dense_ms": 4.0}
    row |= {"macs": [100, 50], "blocks_removed": [], "contended": False}
    assert "6% more than was asked" in sentence(row)
    assert "asked" not in sentence(row | {"latency": 0.51})
