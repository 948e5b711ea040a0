"""Which numbers, which method and which layers are tried on which processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.quantize.choose import Choice
from compress.quantize.config import QuantizeConfig
from compress.quantize.float_file import FloatFile, Layer, named
from compress.quantize.number_types import S8S8, U8S7, U8S8, U8U8, types_for
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.processor import Processor


@pytest.mark.parametrize(
    ("machine", "features", "types"),
    [
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), (U8S8,)),
        ("x86_64", ("avx2", "avx_vnni"), (U8S8,)),
        ("x86_64", ("avx2", "avx512f"), (U8S7, U8U8)),
        ("AMD64", (), (U8S7, U8U8)),  # Windows does not tell: what saturates is not risked
        ("aarch64", ("asimd", "asimddp"), (S8S8,)),
        ("arm64", (), (S8S8,)),
    ],
)
def test_types_follow_the_processor(machine, features, types):
    assert types_for(Processor(machine, features)) == types


def test_types_that_saturate_without_vnni_are_not_among_those_tried_there():
    assert [each.short for each in types_for(Processor("x86_64", ("avx2",)))] == ["U8S7", "U8U8"]
    assert all(each.reduce_range or each.weight == "QUInt8" for each in types_for(Processor("x86_64", ("avx2",))))


def choice(operators: list[str], features: tuple[str, ...] = ("avx512_vnni",), **config: object) -> Choice:
    layers = tuple(Layer(f"n{number}", f"n{number}", each, True) for number, each in enumerate(operators))
    source = FloatFile(Path("x.onnx"), Path("x.onnx"), None, layers)
    processor = Processor("x86_64", features)
    return Choice(QuantizeConfig(**config), source, None, None, processor, LatencyConfig(), 0.5, Path())  # type: ignore[arg-type]


RESNET, TRANSFORMER, BOTH = ["Conv"] * 19 + ["Gemm"], ["Conv"] + ["MatMul"] * 16, ["Conv"] * 8 + ["MatMul"] * 8


@pytest.mark.parametrize(
    ("operators", "methods"),
    [(RESNET, ["static", "static"]), (TRANSFORMER, ["dynamic"]), (BOTH, ["static", "static", "dynamic"])],
)
def test_auto_tries_static_for_convolutions_and_dynamic_for_products(operators, methods):
    assert [way.method for way in choice(operators).ways()] == methods


@pytest.mark.parametrize("operators", [RESNET, TRANSFORMER, BOTH])
@pytest.mark.parametrize("method", ["auto", "static", "dynamic"])
def test_convolutions_are_never_quantised_dynamically(operators, method):
    ways = choice(operators, method=method).ways()
    assert ways
    assert not any("Conv" in way.operators for way in ways if way.method == "dynamic")


def test_norms_softmax_and_exponentials_stay_float():
    delicate = {"LayerNormalization", "Softmax", "Gelu", "Erf", "Exp", "InstanceNormalization"}
    assert not any(delicate & set(way.operators) for way in choice(BOTH).ways())


def test_unsigned_weights_have_one_scale_and_signed_ones_one_for_each_channel():
    by_types = {way.types: way.per_channel for way in choice(RESNET, features=("avx2",)).ways()}
    assert by_types == {U8S7: True, U8U8: False}
    assert not any(way.per_channel for way in choice(RESNET, per_channel=False).ways())


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("layer3", True),
        ("layer3.0", True),
        ("layer3.*", True),
        ("layer*.conv1", True),
        ("conv1", False),
        ("lay", False),
    ],
)
def test_a_glob_names_a_layer_or_a_module_around_it(glob, matches):
    assert named("layer3.0.conv1", glob) is matches
