import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from evaluators.latency import agent
from evaluators.latency.agent.clock import Watch, is_contended, unrest
from evaluators.latency.agent.feed import DTYPES, BadInput, make_feed, make_input
from evaluators.latency.agent.timing import summarise
from evaluators.latency.width_multiple import conv_chain

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
    folder, modules = Path(agent.__file__).parent, set()
    assert {each.stem for each in folder.glob("*.py")} == {*agent.MODULES, "__init__"}
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
        modules |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {each for each in modules if each.split(".")[0] not in sys.stdlib_module_names | {"numpy", "onnxruntime"}}
    assert foreign == {f"evaluators.latency.agent.{name}" for name in agent.MODULES}


def test_an_empty_model_costs_less_than_a_tenth_of_a_millisecond(tmp_path):
    path = identity(tmp_path, [1, 3, 8, 8])
    found = [agent.measure(path, REQUEST) for _ in range(3)]
    assert min(each["p50"] for each in found) < 0.1
    assert min(each["contention"] for each in found) < 1.1  # reading the clocks is no waiting


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("flags\t: fpu avx2 avx512f avx512_vnni sse", ["avx2", "avx512f", "avx512_vnni"]),
        ("Features\t: fp asimd asimddp i8mm crc32", ["asimd", "asimddp", "i8mm"]),
        ("model name\t: one that tells nothing", []),
    ],
)
def test_features_are_read_as_linux_has_them_on_x86_and_arm(monkeypatch, lines, found):
    monkeypatch.setattr(agent.Path, "read_text", lambda *_, **__: f"processor\t: 0\n{lines}\n\nprocessor\t: 1\n")
    assert agent.features() == found


def test_cpu_median_and_wall_minimum_rank_models_alike(tmp_path):
    widths = (16, 32, 48, 64, 80, 96, 112)
    results = [agent.measure(conv_chain(width, tmp_path), REQUEST | {"seconds": 0.2}) for width in widths]
    cpu, wall = (ranks([each[key] for each in results]) for key in ("cpu_p50", "min"))
    assert np.corrcoef(cpu, wall)[0, 1] >= 0.95
    assert list(cpu) == sorted(cpu)


def test_twice_the_runs_give_the_same_median_where_the_machine_is_quiet(tmp_path):
    path, differences = conv_chain(48, tmp_path), []
    for _ in range(6):  # the processor's clock may move between two measurements, but not between all
        once, twice = (agent.measure(path, REQUEST | {"runs": runs}) for runs in (200, 400))
        if max(once["cv"], twice["cv"]) < 0.05:
            differences.append(abs(twice["p50"] / once["p50"] - 1))
            if differences[-1] < 0.03:
                return
    if len(differences) < 3:
        pytest.skip(f"the machine is busy: {len(differences)} of 6 pairs were steady, 3 wanted")
    pytest.fail(f"medians of 200 and 400 runs differ by {differences}")


def test_percentiles_are_ordered_and_runs_counted(tmp_path):
    result = agent.measure(conv_chain(32, tmp_path), REQUEST | {"runs": 150})
    assert result["runs"] >= 150
    assert result["min"] <= result["p10"] <= result["p50"] <= result["p90"] <= result["p95"] <= result["p99"]
    assert result["contention"] > 0.5 and 0 <= result["waited"]


def test_measuring_stops_at_max_seconds(tmp_path):
    result = agent.measure(conv_chain(64, tmp_path), REQUEST | {"runs": 10**9, "max_seconds": 0.2})
    assert 0.1e3 < result["runs"] * result["mean"] < 1e3


def test_several_threads_have_no_contention_figure(tmp_path):
    result = agent.measure(conv_chain(64, tmp_path), REQUEST | {"threads": 2})
    assert result["contention"] is None
    assert result["cpu_p50"] > 0


def fed(*inputs, batch=1, input_size=None):
    """Return the shapes that a model with these inputs (name, shape) is fed."""
    entries = [SimpleNamespace(name=name, shape=shape, type="tensor(float)") for name, shape in inputs]
    feed = make_feed(SimpleNamespace(get_inputs=lambda: entries), batch, input_size)
    return [value.shape for value in feed.values()]


def test_inputs_look_like_images():
    image = make_input("x", [2, 3, 64, 64], "tensor(float)", seed=0)
    assert image.shape == (2, 3, 64, 64)
    assert image.dtype == np.float32
    assert 0.7 < image.std() < 1.3
    neighbours = np.corrcoef(image[..., :-1].ravel(), image[..., 1:].ravel())[0, 1]
    assert neighbours > 0.5
    assert not np.array_equal(image[0], image[1])


@pytest.mark.parametrize("shape", [[1, 3, 16, 16], [1, 16], [16]])
@pytest.mark.parametrize("kind", DTYPES)
def test_every_type_of_input_is_varied(kind, shape):
    values = make_input("x", shape, kind, seed=0)
    assert values.dtype == DTYPES[kind]
    assert len(np.unique(values)) > 1


def test_open_sizes_are_filled_from_input_size_and_fixed_ones_kept():
    assert fed(("x", ["n", 3, "h", "w"]), batch=4, input_size=[1, 20, 30]) == [(4, 3, 20, 30)]
    assert fed(("x", ["n", 80, "t"]), batch=2, input_size=[80, 50]) == [(2, 80, 50)]
    assert fed(("x", [1, 3, 8, 8]), input_size=[5]) == [(1, 3, 8, 8)]
    for size in (None, [1, 2], [1, 2, 3, 4]):
        with pytest.raises(BadInput, match=r"open sizes \[3, 'h', 'w'\]; got input_size .*; give 3 sizes"):
            fed(("x", ["n", 3, "h", "w"]), batch=4, input_size=size)
    with pytest.raises(BadInput, match="fixed batch of 1; got batch 4"):
        fed(("x", [1, 3, 8, 8]), batch=4)
    with pytest.raises(BadInput, match=r"type tensor\(string\)"):
        make_input("x", [1, 3], "tensor(string)", seed=0)


@pytest.mark.parametrize(
    ("second", "shape"),
    [
        ([5, 4], (5, 4)),
        (["n", 4], (4, 4)),
        (["boxes", 4], (1, 4)),
        ([None, 4], (1, 4)),
        (["n", "h"], (4, 20)),
        ([], ()),
        ([1], (1,)),
    ],
)
def test_the_first_dimension_of_another_input_is_a_batch_only_where_it_is_called_so(second, shape):
    images = ("x", ["n", 3, "h", "w"])
    assert fed(images, ("y", second), batch=4, input_size=[3, 20, 30]) == [(4, 3, 20, 30), shape]
    assert fed(("y", second), images, batch=4, input_size=[3, 20, 30]) == [shape, (4, 3, 20, 30)]


def test_an_open_size_that_nothing_tells_is_named():
    with pytest.raises(BadInput, match=r"input 'y' has open sizes \[4, 'k'\]"):
        fed(("x", ["n", 3, 8, 8]), ("y", ["n", "k"]), batch=4)


# (waited, stolen, p90 / p50), as seen on two processors with a small and a large model, one thread and two
QUIET = [(0.021, 0.0, 1.23), (0.016, 0.007, 1.25), (0.002, 0.0, 1.02), (0.014, 0.02, 1.12), (0.011, 0.0, 1.31),
         (0.029, 0.007, 1.21), (None, None, 1.3)]  # fmt: skip
BUSY = [(0.43, 0.033, 1.32), (0.45, 0.007, 1.32), (0.42, 0.0, 1.07), (0.61, 0.007, 1.23), (0.83, 0.014, 1.0),
        (0.50, 0.0, 1.27), (0.76, 0.0, 1.09), (0.89, 0.04, 1.22), (1.21, 0.006, 1.88), (None, None, 8.0)]  # fmt: skip


@pytest.mark.parametrize("seen", QUIET)
def test_an_idle_machine_counts_as_quiet(seen):
    assert not is_contended(*seen)


@pytest.mark.parametrize("seen", BUSY)
def test_a_busy_machine_counts_as_busy(seen):
    assert is_contended(*seen)


def watched(**lost):
    watch = Watch()
    watch.seconds, watch.lost = 1.0, lost
    return watch


@pytest.mark.parametrize(
    ("threads", "lost", "waited", "contended"),
    [
        (1, {"off": 0.01, "queued": 0.01, "stolen": 0.0}, 0.01, False),
        (1, {"off": 0.5, "queued": 0.02}, 0.5, True),
        (1, {"off": 0.02, "queued": 0.9}, 0.9, True),  # a virtual machine whose host counts what it takes as ours
        (1, {"off": 0.5}, 0.5, True),
        (1, {"stolen": 0.3}, None, True),
        (2, {"off": 0.5, "queued": 0.01}, 0.01, False),  # it waits for its own workers
        (2, {"off": 0.5, "queued": 0.6}, 0.6, True),
        (2, {}, None, False),
    ],
)
def test_waiting_is_seen_though_all_runs_fall_between_two_interruptions(threads, lost, waited, contended):
    wall = np.full(1000, 0.113)
    found = unrest([wall, wall], watched(**lost), REQUEST | {"threads": threads})
    assert (found["waited"], found["contended"]) == (waited, contended)


def test_a_watch_counts_the_time_without_a_processor():
    idle, busy = Watch(), Watch()
    with idle:
        time.sleep(0.3)
    with busy:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
    assert idle.share("off") > 0.9
    assert busy.seconds * (1 - busy.share("off")) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("threads", [1, 2])
def test_busy_processes_are_noticed(tmp_path, threads):
    if threads > 1 and not Path("/proc/self/schedstat").exists():
        pytest.skip("only Linux tells how long threads wait")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        result = agent.measure(conv_chain(16, tmp_path), REQUEST | {"seconds": 1.0, "threads": threads})
    finally:
        for each in busy:
            each.kill()
            each.wait()
    assert result["contended"], result["waited"]


def test_the_ratio_is_the_median_over_all_blocks():
    generator = np.random.default_rng(1)
    rounds = [[1.5, 1] * (1 + 0.02 * generator.standard_normal((10, 2))) for _ in range(5)]
    found = summarise(rounds, 0)
    assert found["blocks"] == 50
    assert found["median"] == pytest.approx(1.5, rel=0.02)
    assert found["ci95"][0] < 1.5 < found["ci95"][1]


@pytest.mark.parametrize(("busy", "clock"), [(False, "wall"), (True, "cpu")])
def test_records_and_ratios_are_of_the_same_runs(tmp_path, monkeypatch, busy, clock):
    """Of three models in turns: where the machine is busy the ratio is of CPU times, and so is the pair of medians."""
    monkeypatch.setattr(agent.clock, "is_contended", lambda *_: busy)
    files = [conv_chain(width, tmp_path) for width in (48, 32, 16)]
    found = agent.compare(files, REQUEST | {"runs": 60, "max_seconds": 1.5, "precision": 1e-9})
    name = "cpu_p50" if busy else "p50"
    first, *others = found["records"]
    for record, ratio in zip(others, found["ratios"], strict=True):
        assert record["runs"] == first["runs"] >= 60
        assert ratio["clock"] == clock and record["contended"] is first["contended"] is busy
        assert ratio["median"] == pytest.approx(first[name] / record[name], rel=0.25)


def test_bootstrap_interval_contains_the_truth_95_times_of_100():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        sessions = 1 + 0.003 * generator.standard_normal((5, 1))
        medians = np.ones((5, 10, 2))
        medians[:, :, 0] = sessions * (1 + 0.03 * generator.standard_normal((5, 10)))
        low, high = summarise(list(medians), trial)["ci95"]
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


@pytest.mark.parametrize("action", ["measure", "compare"])
def test_a_model_without_inputs_is_timed(tmp_path, action):
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])]
    constant = helper.make_node("RandomNormal", [], ["y"], shape=[3])
    path = tmp_path / "bare.onnx"
    graph = helper.make_graph([constant], "g", [], ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    if action == "measure":
        found = agent.measure(path, REQUEST)
    else:
        found = agent.compare([path, path], REQUEST | {"max_seconds": 0.5})["records"][1]
    assert found["p50"] > 0 and found["shape"] == []


def test_inputs_that_a_model_does_not_take_are_its_users_fault(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c"]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [1.0] * 8)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "four.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert agent.measure(path, REQUEST | {"input_size": [4]})["shape"] == [1, 4]
    with pytest.raises(BadInput, match=r"four\.onnx: it does not run on inputs x \[1, 5\]: "):
        agent.measure(path, REQUEST | {"input_size": [5]})
