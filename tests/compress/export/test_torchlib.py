"""The exporter's table of operators is made once for an operator set, and torch is left as it was."""

from __future__ import annotations

from torch.onnx._internal.exporter._registration import ONNXRegistry

from compress.export.torchlib import table_kept


def test_a_table_is_made_once_for_each_operator_set() -> None:
    tables = []
    for version in (18, 18, 20):
        with table_kept():
            tables.append(ONNXRegistry.from_torchlib(opset_version=version))
    assert tables[0] is tables[1] and [table.opset_version for table in tables] == [18, 18, 20]
    assert ONNXRegistry.from_torchlib(opset_version=18) is not tables[0]
