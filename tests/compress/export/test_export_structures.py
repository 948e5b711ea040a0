"""Export of modules that take or give more than one tensor of images, or do odd things to them."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig, export
from compress.graph.attention import NarrowAttention

EXPORTERS = ("dynamo", "torchscript")


class Calling(nn.Module):
    """Layers and a function of them and the inputs."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *args, **kwargs):
        return self.function(*self.layers, *args, **kwargs)


def shapes(path):
    """Return the shapes of a file's inputs and outputs by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [{each.name: each.shape for each in ends} for ends in (session.get_inputs(), session.get_outputs())]


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: value.numpy() for name, value in inputs.items()}), strict=True))


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(1, 4, 3, padding=1), (1, 8, 20)),
        (nn.Conv1d(8, 4, 3, padding=1), (8, 10)),
        (nn.Conv3d(1, 4, 3, padding=1), (1, 4, 6, 8)),
        (nn.Linear(7, 4), (7,)),
    ],
    ids=["rectangular", "1-D", "3-D", "vector"],
)
def test_inputs_of_any_sizes(tmp_path, exporter, layer, size):
    path = tmp_path / "model.onnx"
    found = export(layer, torch.randn(2, *size), path, ExportConfig(exporter=exporter))
    assert shapes(path)[0] == {"input": ["batch", *size]} and list(shapes(path)[1]) == ["logits"]
    assert found.checked_batches == (1, 2, 3) and found.parity_max_rel < 1e-5


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_outputs_are_called_by_their_keys_and_positions_and_each_is_checked(tmp_path, exporter):
    def forward(conv, head, x):
        y = conv(x)
        return {"boxes": [y, F.avg_pool2d(y, 2)], "cls": head(y.mean((2, 3))), "rank": y.flatten(1).argmax(1)}

    path, x = tmp_path / "model.onnx", torch.randn(2, 3, 8, 8)
    model = Calling(forward, nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5))
    export(model, x, path, ExportConfig(exporter=exporter))
    assert list(shapes(path)[1]) == ["boxes_0", "boxes_1", "cls", "rank"]
    expected, found = model(x), run(path, input=x)
    np.testing.assert_allclose(found["boxes_1"], expected["boxes"][1].detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["rank"], expected["rank"])


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_sizes_that_a_model_returns_as_numbers_are_no_outputs(tmp_path, exporter):
    path = tmp_path / "model.onnx"
    model = Calling(lambda head, x: {"samples": x.shape[0], "sizes": x.shape, "y": head(x)}, nn.Linear(7, 4))
    export(model, torch.randn(2, 7), path, ExportConfig(exporter=exporter))
    assert shapes(path)[1] == {"y": ["batch", 4]}


def test_an_output_that_the_file_gets_wrong_is_named(tmp_path, monkeypatch):
    state = {"shift": 0.0}

    def forward(layer, x):
        return {"good": layer(x), "bad": layer(x) + state["shift"]}

    def shifting(*args, **kwargs):
        state["shift"] += 1.0  # at every file anew
        return real(*args, **kwargs)

    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", shifting)
    with pytest.raises(CompressError, match="output 'bad' is off by"):
        export(
            Calling(forward, nn.Linear(4, 4)), torch.randn(2, 4), tmp_path / "m.onnx", ExportConfig(exporter="dynamo")
        )


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("how", ["tuple", "dict"])
def test_several_inputs(tmp_path, exporter, how):
    def forward(conv, image, step, scale=None):
        y = conv(image).mean((2, 3)) + step.unsqueeze(1)
        return (y if scale is None else y * scale,)

    path, model = tmp_path / "model.onnx", Calling(forward, nn.Conv2d(3, 4, 3))
    image, step, scale = torch.randn(2, 3, 8, 8), torch.tensor([3, 900]), torch.rand(2, 4)
    inputs = (image, step) if how == "tuple" else {"image": image, "step": step, "scale": scale}
    found = export(model, inputs, path, ExportConfig(exporter=exporter))
    names = ["input_0", "input_1"] if how == "tuple" else ["image", "step", "scale"]
    assert list(shapes(path)[0]) == names
    assert all(shape[0] == "batch" for shape in shapes(path)[0].values()) and found.checked_batches == (1, 2, 3)
    assert list(shapes(path)[1]) == ["output_0"]


def test_no_input_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no tensor"):
        export(Calling(lambda: torch.ones(1)), (), tmp_path / "model.onnx")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_inputs_without_a_common_batch_are_fixed_and_noted(tmp_path, exporter):
    path, model = tmp_path / "model.onnx", Calling(lambda layer, x, scale: layer(x) * scale, nn.Linear(4, 3))
    found = export(model, (torch.randn(2, 4), torch.rand(3)), path, ExportConfig(exporter=exporter))
    assert shapes(path)[0] == {"input_0": [2, 4], "input_1": [3]}
    assert any("share no first dimension" in note for note in found.notes)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_that_changes_its_input_in_place_agrees_with_its_file(tmp_path, exporter):
    def forward(conv, x):
        x.mul_(2).add_(0.5)
        return conv(x).relu().mean((2, 3))

    path, x = tmp_path / "model.onnx", torch.randn(2, 3, 8, 8)
    kept, model = x.clone(), Calling(forward, nn.Conv2d(3, 5, 3))
    assert export(model, x, path, ExportConfig(exporter=exporter)).parity_max_rel < 1e-5
    assert torch.equal(x, kept)
    np.testing.assert_allclose(run(path, input=x)["logits"], model(x.clone()).detach(), rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """An empty parameter, a complex buffer, a shared module, a transposed weight, state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.second = self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.weight, self.empty = nn.Parameter(torch.randn(4, 8).t()), nn.Parameter(torch.empty(0))
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.arange(2.0)))

    def get_extra_state(self):
        return {"note": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        y = self.again(self.second(self.conv(x))).mean((2, 3)) @ self.weight
        return torch.view_as_real(torch.view_as_complex(y.reshape(-1, 2, 2)) * self.turn).flatten(1)


def test_odd_parameters_and_memory_formats_are_exported(tmp_path):
    model = Odd().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert export(model, x, tmp_path / "model.onnx", ExportConfig(exporter="dynamo")).parity_max_rel < 1e-5


def test_a_failing_exporter_writes_nothing_to_standard_output(tmp_path, capfd):
    model = Calling(lambda x: torch.fft.fft(x).abs())  # torchscript has no such operator
    with pytest.raises(CompressError, match="torchscript"):
        export(model, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx", ExportConfig(exporter="torchscript"))
    assert capfd.readouterr().out == ""


def test_narrow_attention_with_a_mask_of_each_head_takes_any_batch(tmp_path):
    layer = nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True)
    NarrowAttention.free(layer)
    model = Calling(
        lambda layer, x: layer(
            x, x, x, attn_mask=(x @ x.transpose(1, 2) > 0).repeat_interleave(2, 0), need_weights=False
        )[0],
        layer,
    )
    found = export(model.eval(), torch.randn(2, 5, 8), tmp_path / "model.onnx", ExportConfig(exporter="torchscript"))
    assert found.checked_batches == (1, 2, 3)


def test_torchscript_writes_encoder_layers_of_torchs_own(tmp_path):
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()  # fused, unless told not to
    found = export(model, torch.randn(2, 5, 8), tmp_path / "model.onnx", ExportConfig(exporter="torchscript"))
    assert found.parity_max_rel < 1e-5
    assert torch.backends.mha.get_fastpath_enabled()
