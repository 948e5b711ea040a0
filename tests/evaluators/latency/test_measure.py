import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

import evaluators.latency.measure
from compress.core.errors import CompressError, InputError
from evaluators.latency import agent
from evaluators.latency.measure import LatencyConfig, LatencyRecord, compare, measure, record
from evaluators.latency.width_multiple import conv_chain

QUICK = LatencyConfig(seconds=0.2)
METRICS = {"p10", "p50", "p90", "p99", "min", "cpu_p50", "runs", "threads", "batch", "provider", "contended"}


def open_batch_model(folder):
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((48, 8), dtype=np.float32), "w")
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8]),
    ]
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    path = folder / "open.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def separable_chain(folder, width=128):
    """Depthwise 3x3 and pointwise convolutions, the stuff of MobileNets."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index in range(6):
        shape, groups = ((width, 1, 3, 3), width) if index % 2 == 0 else ((width, width, 1, 1), 1)
        weight = generator.standard_normal(shape, dtype=np.float32) / (shape[1] * shape[2] ** 2) ** 0.5
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        pads = [shape[2] // 2] * 4
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=pads, group=groups))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        value = f"r{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width, 28, 28]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = folder / "separable.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_measure_gives_exactly_the_fields_of_metrics(tmp_path):
    found = measure(conv_chain(32, tmp_path), QUICK)
    assert set(found) == METRICS
    assert found["threads"] == found["batch"] == 1
    assert found["provider"] == "CPUExecutionProvider"
    assert 0 < found["min"] <= found["p10"] <= found["p50"] <= found["p90"] <= found["p99"]


def test_record_carries_environment_shape_and_samples(tmp_path):
    found = record(str(open_batch_model(tmp_path)), LatencyConfig(seconds=0, batch=5, threads=2))
    assert found.shape == [5, 3, 4, 4]
    assert (found.dtype, found.optimization, found.threads, found.batch) == ("float32", "all", 2, 5)
    assert 90 <= len(found.samples) <= 1000
    assert found.environment["onnxruntime"]
    assert found.environment["cpu"]


def test_what_is_timed_is_told_in_numbers_that_are_there(tmp_path, capsys, monkeypatch):
    def nothing(*_):
        raise InputError("asked")

    monkeypatch.setattr(evaluators.latency.measure, "ask", nothing)
    for config, told in (
        (LatencyConfig(seconds=0), "latency of net.onnx: 1 thread\n"),
        (LatencyConfig(threads=2), "latency of net.onnx: 2 threads, at least 3 s\n"),
    ):
        with pytest.raises(InputError, match="asked"):
            record(tmp_path / "net.onnx", config)
        assert capsys.readouterr().err == told


def test_a_record_without_one_of_its_fields_is_refused(tmp_path, monkeypatch):
    path = conv_chain(16, tmp_path)
    whole = record(path, LatencyConfig(seconds=0)).model_dump()
    environment = whole.pop("environment")
    for missing in whole:
        part = {key: value for key, value in whole.items() if key != missing}
        monkeypatch.setattr(
            evaluators.latency.measure, "ask", lambda *_, part=part: {"result": part, "environment": environment}
        )
        with pytest.raises(CompressError, match=missing):
            record(path, QUICK)
    assert set(whole) | {"environment"} == set(LatencyRecord.model_fields)


def test_a_model_is_as_fast_as_itself(tmp_path):
    path = conv_chain(64, tmp_path)
    found = compare(path, path, LatencyConfig())
    assert set(found) == {"median", "ci95", "blocks", "clock"}
    assert 0.97 <= found["median"] <= 1.03
    assert found["ci95"][0] <= 1 <= found["ci95"][1]
    assert found["blocks"] >= 20
    assert found["clock"] in ("wall", "cpu")


def test_the_ratio_is_above_one_where_the_first_model_is_slower(tmp_path):
    found = compare(conv_chain(96, tmp_path), conv_chain(48, tmp_path), LatencyConfig(seconds=0, max_seconds=1))
    assert found["ci95"][0] > 2


def test_a_comparison_stops_at_max_seconds(tmp_path):
    path = conv_chain(32, tmp_path)
    found = compare(path, path, LatencyConfig(seconds=0, max_seconds=0.6, precision=1e-9))
    assert 1 <= found["blocks"] < 300


def test_the_layout_optimisation_speeds_up_convolutions(tmp_path):
    if agent.vector_extension() != "avx512":
        pytest.skip("the blocked layout is known to pay by 1.5 on AVX-512 only")
    path = separable_chain(tmp_path)
    plain = measure(path, QUICK.model_copy(update={"optimization": "disable"}))
    assert plain["cpu_p50"] > 1.5 * measure(path, QUICK)["cpu_p50"]


def test_a_fixed_batch_is_not_overruled(tmp_path):
    with pytest.raises(InputError, match="fixed batch of 1; got batch 4"):
        measure(conv_chain(16, tmp_path), LatencyConfig(batch=4))


def test_an_unknown_provider_is_named_with_the_allowed_ones(tmp_path):
    with pytest.raises(InputError, match=r"'TPUExecutionProvider'.*allowed: .*CPUExecutionProvider"):
        measure(conv_chain(16, tmp_path), LatencyConfig(provider="TPUExecutionProvider"))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_a_broken_file_is_one_sentence_about_the_input(tmp_path, damage):
    path = tmp_path / "model.onnx"
    whole = conv_chain(32, tmp_path).read_bytes()
    if damage != "missing":
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not a model"}[damage])
    with pytest.raises(InputError, match=r"model\.onnx") as caught:
        measure(path, QUICK)
    assert "\n" not in str(caught.value)


def test_max_seconds_below_seconds_is_refused():
    with pytest.raises(ValidationError, match="max_seconds must be at least seconds"):
        LatencyConfig(seconds=5, max_seconds=1)
