"""The exporter's table of operators is made once for an operator set, and torch is left as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from compress.export.exporters import ExportConfig, export
from compress.export.torchlib import table_kept


def test_a_table_is_made_once_for_each_operator_set() -> None:
    tables = []
    for version in (18, 18, 20):
        with table_kept():
            tables.append(ONNXRegistry.from_torchlib(opset_version=version))
    assert tables[0] is tables[1] and [table.opset_version for table in tables] == [18, 18, 20]
    assert ONNXRegistry.from_torchlib(opset_version=18) is not tables[0]


class Clipped(nn.Module):
    """A layer between limits that are tensors, as those learnt for quantization are."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        for name, value in {"low": -limit, "high": limit, "least": -limit / 2, "most": limit / 2}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.clamp(self.low, self.high)).clamp(self.least, self.most)


class Sum(nn.Module):
    """Several of them one after the other, whose limits the exporter's optimizer joins."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.others = (
            nn.Sequential(Clipped(2.0), Clipped(3.0)),
            nn.ModuleList(map(Clipped, (2.0, 3.0, 4.0))),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 2
        return torch.stack([other(y) for other in self.others]).sum(0)


def test_a_file_whose_constants_the_optimizer_lost_is_written_without_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = export(Sum().eval(), torch.randn(2, 4), tmp_path / "m.onnx", ExportConfig(exporter="dynamo"))
    assert result.parity_max_rel < 1e-5
