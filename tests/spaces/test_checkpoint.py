from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.errors import InputError
from spaces.checkpoint import load_weights, read_state_dict
from spaces.cifar_resnet import cifar_resnet


class Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return print, ("code in a pickle has run",)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(cifar_resnet(8).state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("model.checkpoint: ") and str(path) in sentence
    return sentence


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th"])
def test_reads_plain_state_dicts(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(read_state_dict(path), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_unwraps_training_checkpoints(tmp_path: Path, state: dict[str, Tensor], key: str, prefix: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: OrderedDict((prefix + n, v) for n, v in state.items()), "epoch": 3, "args": {"lr": 0.1}}, path)
    assert same(read_state_dict(path), state)


def test_keeps_a_submodule_that_is_called_module(tmp_path: Path) -> None:
    save_file({"module.weight": torch.ones(2), "head.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    assert set(read_state_dict(tmp_path / "w.safetensors")) == {"module.weight", "head.weight"}


def test_refuses_pickle_with_code_without_running_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, write in enumerate((torch.save, lambda o, p: p.write_bytes(pickle.dumps(o)))):
        path = tmp_path / f"evil{number}.pth"
        write({"weight": torch.ones(1), "evil": Evil()}, path)
        assert "code" in refused(path)
    assert "has run" not in capsys.readouterr().out


def test_refuses_truncated_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(state, whole)
    content = whole.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(content[:length])
        assert "not a complete safetensors file" in refused(cut)
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:3000])
    refused(tmp_path / "cut.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite_by_name(tmp_path: Path, state: dict[str, Tensor], value: float) -> None:
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    assert "'layer2.0.conv1.weight'" in refused(tmp_path / "w.safetensors")


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert "no file" in refused(tmp_path / "absent.pth")
    (tmp_path / "w.txt").write_text("hello")
    assert ".safetensors" in refused(tmp_path / "w.txt")
    (tmp_path / "w.pth").write_text("hello, this is no checkpoint")
    refused(tmp_path / "w.pth")
    torch.save({"epoch": 3}, tmp_path / "n.pth")
    assert "no tensors" in refused(tmp_path / "n.pth")


def test_reports_missing_and_unexpected_names(state: dict[str, Tensor]) -> None:
    model = cifar_resnet(8)
    bias = model.linear.bias.detach().clone()
    del state["linear.bias"], state["bn1.num_batches_tracked"]
    report = load_weights(model, state | {"extra": torch.ones(1)}, "w.pth")
    assert report.missing == ["linear.bias"] and report.unexpected == ["extra"] and not report.replaced
    assert "linear.bias" in report.summary() and "extra" in report.summary()
    assert torch.equal(model.linear.bias, bias)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_replaces_a_classifier_of_other_classes_and_names_it(state: dict[str, Tensor]) -> None:
    model = cifar_resnet(8, num_classes=3)
    report = load_weights(model, state, "w.pth")
    assert sorted(report.replaced) == ["linear.bias", "linear.weight"]
    assert "classifier replaced" in report.summary()
    assert torch.equal(model.layer3[0].conv2.weight, state["layer3.0.conv2.weight"])


def test_translates_the_names_of_other_publishers(state: dict[str, Tensor]) -> None:
    renamed = {name.replace("linear", "fc"): value for name, value in state.items()}
    model = cifar_resnet(8)
    assert load_weights(model, renamed, "w.pth").missing == []
    assert same(dict(model.state_dict()), state)


def test_refuses_other_shapes_and_other_models(state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"conv1\.weight is \(16, 3, 3, 3\), the model's is \(16, 1, 3, 3\)"):
        load_weights(cifar_resnet(8, in_chans=1), state, "w.pth")
    with pytest.raises(InputError, match="of another model"):
        load_weights(nn.Sequential(nn.Linear(3, 3)), state, "w.pth")
