"""Models that amplify rounding, as untrained ones do: what their files are held against."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import CompressError
from compress.export.checks import AMPLIFIED, own_rounding
from compress.export.exporters import ExportConfig, export

CONFIG = ExportConfig(exporter="torchscript")


class Steep(nn.Module):
    """Each layer makes values `gain` times as large, and a sine tells apart what rounding has moved."""

    def __init__(self, gain: float, normed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8) if normed else nn.Identity())]
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), *layers * 4)
        self.head, self.gain = nn.Linear(8, 5), gain

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = self.gain * layer(x)
        return self.head(x.sin().mean((2, 3)))


class Elsewhere(Steep):
    """Its file is wrong for another reason: a number is written down that follows the input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(x.mean())


def test_a_file_may_be_as_far_off_as_rounding_takes_the_model_itself(tmp_path: Path) -> None:
    model, x = Steep(9.0).eval(), torch.randn(2, 3, 12, 12)
    rounding = own_rounding(model, x)
    assert 1e-4 < rounding <= AMPLIFIED
    result = export(model, x, tmp_path / "m.onnx", CONFIG)
    assert 1e-4 < result.parity_max_rel <= 1e-2 and result.notes == ()
    with pytest.raises(CompressError, match="is off by"):
        export(Elsewhere(9.0).eval(), x, tmp_path / "w.onnx", CONFIG)


def test_where_rounding_takes_all_a_copy_with_new_statistics_is_compared(tmp_path: Path) -> None:
    model, x = Steep(60.0).eval(), torch.randn(2, 3, 12, 12)
    assert own_rounding(model, x) > 0.1
    before = {name: each.clone() for name, each in model.state_dict().items()}
    result = export(model, x, tmp_path / "m.onnx", CONFIG)
    assert any("the model amplifies rounding" in note for note in result.notes) and result.parity_max_rel <= 1e-4
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    kept = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert any(array.shape == (8, 3, 3, 3) and torch.equal(torch.tensor(array), model.body[0].weight) for array in kept)
    with pytest.raises(CompressError, match="is off by"):
        export(Elsewhere(60.0).eval(), x, tmp_path / "w.onnx", CONFIG)


def test_without_norms_such_a_model_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="is off by"):
        export(Steep(60.0, normed=False).eval(), torch.randn(2, 3, 12, 12), tmp_path / "m.onnx", CONFIG)
    assert [*tmp_path.iterdir()] == []
