"""Shortcuts that pad channels are convolutions in files: the same values, and fewer operators of ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.export.exporters import ExportConfig, export
from compress.export.quick import write_to_time
from spaces.cifar_resnet import cifar_resnet


class Padded(nn.Module):
    """A convolution beside a shortcut that pads."""

    def __init__(self, channels: int, pads: tuple[int, ...], stride: int = 1, first: int = 0, value: float = 0) -> None:
        super().__init__()
        self.pads, self.stride, self.first, self.value = pads, stride, first, value
        self.conv = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to the padded maps of the convolution."""
        x = self.conv(x)[:, :, self.first :: self.stride, self.first :: self.stride]
        return F.pad(x, self.pads, value=self.value)


def operators(path: Path) -> Counter[str]:
    """Return how often each operator stands in a file."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_padded_shortcut_becomes_a_convolution(exporter: str, tmp_path: Path) -> None:
    config = ExportConfig.model_validate({"exporter": exporter, "dynamic_size": True})
    model = cifar_resnet(8)
    found = export(model, torch.randn(2, 3, 32, 32), tmp_path / "m.onnx", config)  # compared with the module in there
    assert found.parity_max_rel < 1e-5
    seen = operators(tmp_path / "m.onnx")
    assert not seen["Pad"] and not seen["Slice"] and seen["Conv"] == 7 + 2, seen
    graph = onnx.load(tmp_path / "m.onnx").graph
    taken = {name for node in graph.node for name in node.input}
    assert {each.name for each in graph.initializer} <= taken  # nothing is left over


def test_files_to_time_are_written_alike_and_fuse_every_sum(tmp_path: Path) -> None:
    write_to_time(cifar_resnet(20), torch.randn(1, 3, 32, 32), tmp_path / "m.onnx", 1)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    seen = operators(tmp_path / "optimised.onnx")
    assert seen["Conv"] == 21 and not seen["Add"] and not seen["Relu"] and not seen["ReorderInput"], seen


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (Padded(8, (0, 0, 0, 0, 0, 4)), {"Conv": 2}),
        (Padded(8, (0, 0, 0, 0, 3, 0), stride=2), {"Conv": 2}),
        (Padded(8, (0, 0, 0, 0, 4, 4), stride=2, first=1), {"Conv": 2, "Slice": 2}),  # no stride of a convolution
        (Padded(8, (1, 1, 0, 0, 4, 4)), {"Conv": 1, "Pad": 1}),
        (Padded(8, (0, 0, 0, 0, -2, 4)), {"Conv": 1, "Pad": 1}),
        (Padded(8, (0, 0, 0, 0, 4, 4), value=1.0), {"Conv": 1, "Pad": 1}),
        (Padded(136, (0, 0, 0, 0, 4, 4)), {"Conv": 1, "Pad": 1}),  # too many channels to be worth it
    ],
)
def test_only_channels_of_zeros_become_one(model: nn.Module, left: dict[str, int], tmp_path: Path) -> None:
    found = export(model, torch.randn(2, 3, 9, 9), tmp_path / "m.onnx", ExportConfig(exporter="dynamo"))
    seen = operators(tmp_path / "m.onnx")
    assert {name: seen[name] for name in ("Conv", "Pad", "Slice") if seen[name]} == left
    assert found.parity_max_rel < 1e-5


def test_what_a_stride_is_taken_of_stays_where_others_take_it(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            half = self.conv(x)[:, :, ::2, ::2]
            return F.pad(half, (0, 0, 0, 0, 0, 8)).sum((2, 3)) + half.amax((1, 2, 3)).unsqueeze(1)

    found = export(Shared(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx", ExportConfig(exporter="dynamo"))
    assert found.parity_max_rel < 1e-5 and operators(tmp_path / "m.onnx")["Slice"] == 2
