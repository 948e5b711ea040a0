"""Operators of the optimised graph belong to the layers whose work they do."""

import pytest
import torch
from torch import nn

from compress.export.quick import write_to_time
from compress.latency_model.layers import Layers, module_of
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.operators import Operator, time_operators


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.parts = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        return self.parts[0](torch.relu(self.norm(self.conv(x)) + x))


@pytest.fixture
def file(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), Block()).eval()
    path = tmp_path / "model.onnx"
    assert write_to_time(model, torch.randn(1, 3, 8, 8), path, 3) == 3
    return path, [name for name, _ in model.named_modules()]


def test_scopes_that_repeat_containers_name_modules():
    modules = ["", "layer1", "layer1.0", "layer1.0.conv1", "blocks.3", "blocks.3.attn", "blocks.3.attn.qkv"]
    assert module_of("/layer1/layer1.0/conv1/Conv", modules) == "layer1.0.conv1"
    assert module_of("/blocks.3/attn/qkv/MatMul", modules) == "blocks.3.attn.qkv"
    assert module_of("/layer1/layer1.0/Relu_1", modules) == "layer1.0"
    assert module_of("/Flatten", modules) == ""


def test_fused_operators_belong_to_the_weights_and_to_what_was_fused(file):
    path, modules = file
    names = [
        "/1/Relu_output_0_nchwc",
        "ReorderOutput_token_3",
        "gemm_input_reshape",
        "/1/parts.0/MatMul/MatMulAddFusion",
    ]
    types = ["Conv", "ReorderOutput", "Reshape", "Gemm"]
    operators = [Operator(name, kind, 1.0, []) for name, kind in zip(names, types, strict=True)]
    places = Layers(path, modules).places(operators)
    assert places == [("1.conv", "1"), ("1.conv", "1"), ("1.parts.0",), ("1.parts.0",)]


def test_the_times_of_operators_are_about_those_of_the_file(file):
    path, modules = file
    timed = time_operators([path, path], LatencyConfig(batch=3), 0.0)
    for model in timed.models:
        assert 0 < model.ms < 10
        assert sum(each.ms for each in model.operators) == pytest.approx(model.ms, rel=0.9)
    places = {place[0] for place, _, _ in Layers(path, modules).times(timed.models[0].operators)}
    assert {"0", "1.conv", "1.parts.0"} <= places
