import ast
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from evaluators import agent
from evaluators.targets import conv_chain

REQUEST = {
    "threads": 1, "batch": 1, "input_size": None, "provider": "CPUExecutionProvider", "optimization": "all",
    "seconds": 0.0, "max_seconds": 10.0, "runs": 100, "precision": 0.1, "seed": 0,
}  # fmt: skip


def identity(folder, shape, kind=TensorProto.FLOAT):
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    path = folder / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def ranks(values):
    return np.argsort(np.argsort(values))


def test_agent_needs_only_the_standard_library_numpy_and_onnxruntime():
    tree = ast.parse(Path(agent.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    modules = {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {each.split(".")[0] for each in modules} <= sys.stdlib_module_names | {"numpy", "onnxruntime"}


def test_an_empty_model_costs_less_than_50_microseconds(tmp_path):
    path = identity(tmp_path, [1, 3, 8, 8])
    assert min(agent.measure(path, REQUEST)["p50"] for _ in range(3)) < 0.05


def test_cpu_median_and_wall_minimum_rank_models_alike(tmp_path):
    widths = (16, 32, 48, 64, 80, 96, 112)
    results = [agent.measure(conv_chain(width, tmp_path), REQUEST | {"seconds": 0.2}) for width in widths]
    cpu, wall = (ranks([each[key] for each in results]) for key in ("cpu_p50", "min"))
    assert np.corrcoef(cpu, wall)[0, 1] >= 0.95
    assert list(cpu) == sorted(cpu)


def test_twice_the_runs_give_the_same_median_where_the_machine_is_quiet(tmp_path):
    path = conv_chain(48, tmp_path)
    once, twice = (agent.measure(path, REQUEST | {"runs": runs}) for runs in (200, 400))
    if max(once["cv"], twice["cv"]) >= 0.05:
        pytest.skip(f"the machine is busy: CV {once['cv']:.2f} and {twice['cv']:.2f}, 0.05 wanted")
    assert twice["p50"] == pytest.approx(once["p50"], rel=0.03)


def test_percentiles_are_ordered_and_runs_counted(tmp_path):
    result = agent.measure(conv_chain(32, tmp_path), REQUEST | {"runs": 150})
    assert result["runs"] >= 150
    assert result["min"] <= result["p10"] <= result["p50"] <= result["p90"] <= result["p95"] <= result["p99"]
    assert result["contention"] == pytest.approx(result["p50"] / result["cpu_p50"])


def test_measuring_stops_at_max_seconds(tmp_path):
    result = agent.measure(conv_chain(64, tmp_path), REQUEST | {"runs": 10**9, "max_seconds": 0.2})
    assert 0.1e3 < result["runs"] * result["mean"] < 1e3


def test_several_threads_have_no_contention_figure(tmp_path):
    result = agent.measure(conv_chain(64, tmp_path), REQUEST | {"threads": 2})
    assert result["contention"] is None
    assert result["cpu_p50"] > 0


def test_inputs_look_like_images():
    image = agent.make_input("x", ["batch", 3, 64, 64], "tensor(float)", 2, None, seed=0)
    assert image.shape == (2, 3, 64, 64)
    assert image.dtype == np.float32
    assert 0.7 < image.std() < 1.3
    neighbours = np.corrcoef(image[..., :-1].ravel(), image[..., 1:].ravel())[0, 1]
    assert neighbours > 0.5
    assert not np.array_equal(image[0], image[1])


@pytest.mark.parametrize("kind", agent.DTYPES)
def test_every_type_of_input_is_varied(kind):
    values = agent.make_input("x", [1, 3, 16, 16], kind, 1, None, seed=0)
    assert values.dtype == agent.DTYPES[kind]
    assert len(np.unique(values)) > 1


def test_open_sizes_are_filled_from_input_size_and_fixed_ones_kept():
    shape = ["n", 3, "h", "w"]
    assert agent.make_input("x", shape, "tensor(float)", 4, [1, 20, 30], seed=0).shape == (4, 3, 20, 30)
    with pytest.raises(agent.BadInput, match="give input_size"):
        agent.make_input("x", shape, "tensor(float)", 4, None, seed=0)
    with pytest.raises(agent.BadInput, match="fixed batch of 1; got batch 4"):
        agent.make_input("x", [1, 3, 8, 8], "tensor(float)", 4, None, seed=0)
    with pytest.raises(agent.BadInput, match=r"type tensor\(string\)"):
        agent.make_input("x", [1, 3], "tensor(string)", 1, None, seed=0)


@pytest.mark.parametrize(
    ("cv", "contention", "contended"),
    [(0.01, 2.0, False), (0.5, 1.05, False), (0.5, 1.2, True), (0.5, None, True), (0.01, None, False)],
)
def test_a_number_is_contended_only_where_it_varies_and_waits(cv, contention, contended):
    assert agent.is_contended(cv, contention) is contended


def synthetic_rounds(ratio, contended, count=5, noise=0.02):
    generator = np.random.default_rng(1)
    rounds = []
    for _ in range(count):
        b = 1 + noise * generator.standard_normal((10, 1)) * [[5, 1]]
        a = ratio * (1 + noise * generator.standard_normal((10, 1)) * [[5, 1]])
        rounds.append((np.stack([a, b], axis=1), [contended, False]))
    return rounds


def test_the_ratio_is_of_cpu_times_where_the_wall_clock_was_disturbed():
    quiet = agent.summarise(synthetic_rounds(1.5, False), True, 0)
    busy = agent.summarise(synthetic_rounds(1.5, True), True, 0)
    assert (quiet["clock"], busy["clock"]) == ("wall", "cpu")
    assert agent.summarise(synthetic_rounds(1.5, True), False, 0)["clock"] == "wall"
    assert busy["blocks"] == 50
    assert busy["median"] == pytest.approx(1.5, rel=0.02)
    assert busy["ci95"][0] < 1.5 < busy["ci95"][1]
    assert np.ptp(busy["ci95"]) < np.ptp(quiet["ci95"])


def test_bootstrap_interval_contains_the_truth_95_times_of_100():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        sessions = 1 + 0.003 * generator.standard_normal((5, 1))
        medians = np.ones((5, 10, 2, 2))
        medians[:, :, 0] = (sessions * (1 + 0.03 * generator.standard_normal((5, 10))))[..., None]
        low, high = agent.summarise([(each, [False, False]) for each in medians], True, trial)["ci95"]
        hits += low <= 1 <= high
    assert hits >= 54


def test_main_answers_with_one_json_line(tmp_path, capsys):
    path = conv_chain(32, tmp_path)
    agent.main(json.dumps(REQUEST | {"action": "measure", "models": [str(path)]}))
    (line,) = capsys.readouterr().out.splitlines()
    reply = json.loads(line)
    assert reply["result"]["runs"] >= 100
    assert {"onnxruntime", "cpu", "cores", "load"} <= set(reply["environment"])


def test_main_reports_a_broken_model_as_wrong_input(tmp_path, capsys):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(conv_chain(32, tmp_path).read_bytes()[:5000])
    agent.main(json.dumps(REQUEST | {"action": "measure", "models": [str(broken)]}))
    reply = json.loads(capsys.readouterr().out)
    assert reply["input"]
    assert "broken.onnx" in reply["error"]
