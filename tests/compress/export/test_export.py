import copy
import json
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import nn

import compress.export.exporters
import compress.export.onnx_file
from compress.core.errors import CompressError, InputError
from compress.export.exporters import ExportConfig, export
from compress.export.onnx_file import SINGLE_FILE_BYTES

TORCHSCRIPT = ExportConfig(exporter="torchscript")
DYNAMO = ExportConfig(exporter="dynamo")
EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(
            nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        )


class Net(nn.Module):
    """Convolution, batch norm with trained-looking statistics, attention, a head of ten classes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16)
        self.attention, self.drop, self.head = Attention(16, 4), nn.Dropout(0.5), nn.Linear(16, 10)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        return self.head(self.drop(x + self.attention(x)).mean(1))


def net():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
        model.norm.bias.normal_(0, 0.5)
        model.norm.running_mean.normal_(0, 0.5)
        model.norm.running_var.uniform_(0.5, 2)
    return model.eval()


class Wrong(nn.Module):
    """A number computed from the input, which tracing takes for a constant."""

    def forward(self, x):
        return x.flatten(1)[:, :10] * (2 + x.mean().item())


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"input": images.numpy()})[0])


def without(exporters, monkeypatch):
    """Let the named exporters fail."""
    real = torch.onnx.export

    def limited(*args, dynamo, **kwargs):
        name = "dynamo" if dynamo else "torchscript"
        if name in exporters:
            print(f"chatter of {name}")
            raise RuntimeError(f"{name} cannot") from ValueError(f"no rule for aten::{name}\nand a long tail")
        return real(*args, dynamo=dynamo, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", limited)


@pytest.fixture(scope="module")
def automatic(tmp_path_factory):
    path = tmp_path_factory.mktemp("auto") / "model.onnx"
    return export(net(), EXAMPLE, path)


def test_auto_tries_both_exporters_and_keeps_the_faster(automatic):
    assert set(automatic.tried) == {"dynamo", "torchscript"}
    assert all(each["error"] is None and each["parity_max_rel"] <= 1e-4 for each in automatic.tried.values())
    assert automatic.tried[automatic.exporter]["relative_time"] == 1.0
    assert min(each["relative_time"] for each in automatic.tried.values()) > 1 / 1.03
    assert [each.name for each in automatic.path.parent.iterdir()] == ["model.onnx"]


def test_the_result_describes_the_file(automatic):
    model = onnx.load(automatic.path)
    onnx.checker.check_model(model, full_check=True)
    assert automatic.bytes == automatic.path.stat().st_size
    assert automatic.opset == 20 == next(each.version for each in model.opset_import if not each.domain)
    assert automatic.checked_batches == (1, 2, 3)
    assert automatic.parity_max_rel < 1e-5
    assert automatic.notes == ()
    assert json.loads(json.dumps(automatic.to_dict()))["path"] == str(automatic.path)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("config", [TORCHSCRIPT, DYNAMO], ids=["torchscript", "dynamo"])
def test_64_images_in_any_batch_size_get_the_models_answer(tmp_path, config):
    model, path = net(), tmp_path / "model.onnx"
    export(model, EXAMPLE[:1], path, config)
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2
    with torch.no_grad():
        expected = model(images)
    for batch in (1, 5, 64):
        output = torch.cat([run(path, each) for each in images.split(batch)])
        assert (output - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert torch.equal(output.argmax(1), expected.argmax(1))


def test_the_module_is_left_as_it_was_and_exported_for_inference(tmp_path):
    model = net().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    export(model, EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT)
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert all(each.requires_grad for each in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / "model.onnx", EXAMPLE), copy.deepcopy(model).eval()(EXAMPLE))


def test_denormal_weights_are_zeroed_in_the_file_and_counted(tmp_path):
    model = net()
    with torch.no_grad():
        model.head.weight[:2] = 1e-39
        model.head.weight[2] = -1e-42
        model.head.weight[3] = 1.2e-38
    result = export(model, EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT)
    assert result.denormals_zeroed == 3 * 16
    assert (model.head.weight[0] != 0).all()
    weights = [numpy_helper.to_array(each) for each in onnx.load(result.path).graph.initializer]
    assert not any(((abs(each) < np.finfo(np.float32).tiny) & (each != 0)).any() for each in weights)
    assert any(np.isclose(each, 1.2e-38, rtol=1e-3, atol=0).sum() == 16 for each in weights)


def test_an_opset_that_the_exporter_did_not_honour_is_noted(tmp_path):
    result = export(net(), EXAMPLE, tmp_path / "model.onnx", DYNAMO.model_copy(update={"opset": 13}))
    written = next(each.version for each in onnx.load(result.path).opset_import if not each.domain)
    assert result.opset == written != 13
    assert result.notes == (f"opset 13 was asked for; the dynamo exporter wrote opset {written}",)


def test_opset_null_is_the_exporters_own_without_a_note(tmp_path):
    result = export(net(), EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT.model_copy(update={"opset": None}))
    assert result.opset >= 14
    assert result.notes == ()


def test_a_fixed_batch_is_written_as_asked(tmp_path):
    config = ExportConfig(exporter="torchscript", dynamic_batch=False, batch=1)
    result = export(net(), EXAMPLE, tmp_path / "model.onnx", config)
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 16, 16]
    assert result.checked_batches == (1,)


def test_the_failure_of_one_exporter_is_recorded(tmp_path, monkeypatch):
    without({"dynamo"}, monkeypatch)
    result = export(net(), EXAMPLE, tmp_path / "model.onnx")
    assert result.exporter == "torchscript"
    assert result.tried["dynamo"]["error"] == "ValueError: no rule for aten::dynamo"
    assert result.tried["dynamo"]["bytes"] is None
    assert result.tried["torchscript"]["error"] is None


def test_the_failure_of_both_names_each_cause_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    without({"dynamo", "torchscript"}, monkeypatch)
    says = r"model\.onnx could not be exported: dynamo: .*aten::dynamo; torchscript: .*aten::torchscript"
    with pytest.raises(CompressError, match=says) as caught:
        export(net(), EXAMPLE, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert any("chatter of dynamo" in note for note in caught.value.__notes__)
    assert "chatter" not in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_differently_is_refused(tmp_path):
    with pytest.raises(CompressError, match=r"torchscript: at batch \d its output is off by"):
        export(Wrong(), EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_takes_one_batch_size_only_is_never_one_of_any(tmp_path, monkeypatch):
    real = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda *args, dynamic_axes, **kwargs: real(*args, dynamic_axes=None, **kwargs)
    )
    result = export(net(), EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT)
    assert result.checked_batches == (1,)
    assert any("the file takes 1 at a time" in note for note in result.notes)


def test_an_interrupted_export_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compress.export.exporters, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(net(), EXAMPLE, path, TORCHSCRIPT)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"older"


def test_weights_above_the_limit_go_into_a_file_beside(tmp_path, monkeypatch):
    path, weights = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    assert SINGLE_FILE_BYTES < 2**31
    monkeypatch.setattr(compress.export.onnx_file, "SINGLE_FILE_BYTES", 100)
    result = export(net(), EXAMPLE, path, TORCHSCRIPT)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert result.bytes == path.stat().st_size + weights.stat().st_size
    with torch.no_grad():
        torch.testing.assert_close(run(path, EXAMPLE), net()(EXAMPLE))
    monkeypatch.undo()
    export(net(), EXAMPLE, path, TORCHSCRIPT)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_exporters_keep_quiet(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(net(), EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT)
        export(net(), EXAMPLE, tmp_path / "model.onnx", DYNAMO)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"exporting with torch's {name} exporter" for name in ("torchscript", "dynamo")]


@pytest.mark.parametrize("place", ["directory", "under a file"])
def test_a_path_that_cannot_be_written_is_the_users_mistake(tmp_path, place):
    (tmp_path / "file").write_text("")
    path = tmp_path if place == "directory" else tmp_path / "file" / "model.onnx"
    with pytest.raises(InputError, match="cannot write"):
        export(net(), EXAMPLE, path, TORCHSCRIPT)


def test_a_model_that_answers_nan_or_no_tensor_is_refused(tmp_path):
    broken = net()
    with torch.no_grad():
        broken.head.bias[0] = float("nan")
    with pytest.raises(CompressError, match="NaN"):
        export(broken, EXAMPLE, tmp_path / "model.onnx")
    empty = nn.Identity()
    empty.forward = lambda x: (None, 3)
    with pytest.raises(CompressError, match="returns a tuple without any tensor"):
        export(empty, EXAMPLE, tmp_path / "model.onnx")


def test_a_model_that_answers_zero_is_noted(tmp_path):
    silent = net()
    nn.init.zeros_(silent.head.weight)
    nn.init.zeros_(silent.head.bias)
    (note,) = export(silent, EXAMPLE, tmp_path / "model.onnx", TORCHSCRIPT).notes
    assert "answers 0" in note


@pytest.mark.parametrize("wrong", [{"opset": 5}, {"exporter": "tf"}, {"batch": 0}, {"simplify": True}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        ExportConfig(**wrong)
