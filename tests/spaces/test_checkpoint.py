from __future__ import annotations

import json
import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from compress.core.errors import InputError
from spaces.checkpoint import load_checkpoint, load_weights
from spaces.checkpoint_file import read_checkpoint
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
        load_checkpoint(cifar_resnet(8), path)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("model.checkpoint: ") and str(path) in sentence
    return sentence


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th"])
def test_reads_plain_state_dicts(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert same(read_checkpoint(path)[0], state)


@pytest.mark.parametrize(
    ("form", "exact"),
    [
        (Tensor.to_sparse, True),
        (lambda value: value.to(torch.float8_e4m3fn), False),
        (lambda value: torch.quantize_per_tensor(value, 0.02, 0, torch.qint8), False),
    ],
)
def test_reads_tensors_of_other_layouts(
    tmp_path: Path, state: dict[str, Tensor], form: Callable[[Tensor], Tensor], exact: bool
) -> None:
    wide = {name: form(value) if value.ndim == 4 else value for name, value in state.items()}
    torch.save(wide, tmp_path / "w.pth")
    model = cifar_resnet(8)
    assert not load_checkpoint(model, tmp_path / "w.pth").missing
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], **({} if exact else {"rtol": 0.1, "atol": 0.02}))


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."])
def test_unwraps_training_checkpoints(tmp_path: Path, state: dict[str, Tensor], key: str, prefix: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: OrderedDict((prefix + n, v) for n, v in state.items()), "epoch": 3, "args": {"lr": 0.1}}, path)
    assert same(read_checkpoint(path)[0], state)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_refuses_weights_that_are_no_floats(tmp_path: Path, state: dict[str, Tensor], kind: torch.dtype) -> None:
    path = tmp_path / "weights.pt"
    torch.save({name: value.to(kind) if value.ndim == 4 else value for name, value in state.items()}, path)
    assert f"conv1.weight is {str(kind)[6:]}" in refused(path)


def test_reads_all_parts_by_their_index_and_no_part_alone(tmp_path: Path, state: dict[str, Tensor]) -> None:
    names, files = list(state), [tmp_path / f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    save_file({name: state[name] for name in names[:20]}, files[0])
    save_file({name: state[name] for name in names[20:]}, files[1])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: files[place >= 20].name for place, n in enumerate(names)}}))
    assert same(read_checkpoint(index)[0], state)
    assert "is one of 2 parts; name their index, such as model.safetensors.index.json" in refused(files[1])
    files[1].unlink()
    assert "there is no such file beside it" in refused(index)
    index.write_text("{}")
    assert "weight_map is missing" in refused(index)


def test_keeps_a_submodule_that_is_called_module(tmp_path: Path) -> None:
    save_file({"module.weight": torch.ones(2), "head.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    assert set(read_checkpoint(tmp_path / "w.safetensors")[0]) == {"module.weight", "head.weight"}


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
    assert "no such file" in refused(tmp_path / "absent.pth")
    (tmp_path / "w.txt").write_text("hello")
    assert ".safetensors" in refused(tmp_path / "w.txt")
    (tmp_path / "w.pth").write_text("hello, this is no checkpoint")
    refused(tmp_path / "w.pth")
    torch.save({"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "n.pth")
    assert "no tensors by name; found the keys epoch, optimizer" in refused(tmp_path / "n.pth")
    assert "is a folder" in refused(tmp_path)
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "script.pt")
    assert "TorchScript archive" in refused(tmp_path / "script.pt")


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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s12--4d7a.pth\n", "git annex get"),
        ("\n<!DOCTYPE html><html>not found</html>", "web page"),
    ],
)
def test_says_what_lies_where_the_weights_should(tmp_path: Path, suffix: str, content: str, says: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text(content)
    assert says in refused(path)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "_orig_mod.module.", "encoder.model.", "model.module."]
)
@pytest.mark.parametrize("others", [{}, {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(7)}])
def test_finds_the_model_in_what_was_wrapped_around_it(
    tmp_path: Path, state: dict[str, Tensor], prefix: str, others: dict[str, Tensor]
) -> None:
    torch.save({"state_dict": under(prefix, state) | others, "epoch": 3}, tmp_path / "w.ckpt")
    model = cifar_resnet(8)
    report = load_checkpoint(model, tmp_path / "w.ckpt")
    assert same(dict(model.state_dict()), state) and not report.missing


def test_finds_parts_that_were_compiled(tmp_path: Path, state: dict[str, Tensor]) -> None:
    renamed = {name.replace("layer1.", "layer1._orig_mod."): value for name, value in state.items()}
    torch.save(renamed, tmp_path / "w.pth")
    model = cifar_resnet(8)
    load_checkpoint(model, tmp_path / "w.pth")
    assert same(dict(model.state_dict()), state)


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda raw, ema: {"model_state_dict": ema, "optimizer_state_dict": {"state": {0: {"m": torch.ones(1)}}}}, ""),
        (lambda raw, ema: {"model": raw, "ema": ema}, "from ema (beside model)"),
        (lambda raw, ema: {"model": raw, "ema": {"decay": 0.99, "shadow": ema}}, "from ema (beside model)"),
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": under("module.", ema)}, "from state_dict_ema"),
        (
            lambda raw, ema: under("online_model.", raw) | under("ema_model.", ema),
            "from the part 'ema_model' (beside 'online_model')",
        ),
        (
            lambda raw, ema: under("student.", ema) | under("teacher.", raw),
            "from the part 'student' (beside 'teacher')",
        ),
        (lambda raw, ema: {"state_dict": ema, "best_state_dict": raw}, "from state_dict (beside best_state_dict)"),
        (lambda raw, ema: {"generator": ema, "best": np.float64(93.5), "args": Namespace(lr=0.1)}, ""),
        (lambda raw, ema: AveragedModel(filled(ema)).state_dict(), "from the part 'module'"),
    ],
)
def test_says_which_of_several_weights_it_took(
    tmp_path: Path, state: dict[str, Tensor], wrap: Callable[..., Any], says: str
) -> None:
    averaged = other(state)
    torch.save(wrap(state, averaged), tmp_path / "w.pth")
    model = cifar_resnet(8)
    report = load_checkpoint(model, tmp_path / "w.pth")
    assert same(dict(model.state_dict()), averaged)
    assert says in report.summary() and (says or " from " not in report.summary())


def filled(state: dict[str, Tensor]) -> nn.Module:
    model = cifar_resnet(8)
    model.load_state_dict(state)
    return model


def test_a_refusal_lists_the_keys_that_were_found(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.ones(3), "decoder.weight": torch.ones(3)}, tmp_path / "w.pth")
    assert "the file's keys are encoder.weight, decoder.weight" in refused(tmp_path / "w.pth")


class Tied(nn.Module):
    """Weights under two names, an attention mask, rotary frequencies, and tensors of every other kind."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = self.one
        self.norm = nn.BatchNorm1d(8)
        self.none = nn.Parameter(torch.empty(0))
        self.frozen = nn.Parameter(torch.full((4, 4), float("-inf")).triu(1), requires_grad=False)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("unknown", torch.tensor([float("nan"), 1.0]))
        self.register_buffer("rotary", torch.polar(torch.ones(4), torch.arange(4.0)).conj())
        self.register_buffer("on", torch.tensor([True, False]))
        self.register_buffer("ids", torch.arange(4))


def test_finiteness_is_asked_of_weights_alone(tmp_path: Path) -> None:
    source, model = Tied(), Tied()
    state = {name: value.clone() for name, value in source.state_dict().items() if not name.startswith("two.")}
    torch.save(state, tmp_path / "w.pth")
    report = load_checkpoint(model, tmp_path / "w.pth")
    assert not report.missing and torch.equal(model.two.weight, source.one.weight)
    assert torch.equal(model.get_buffer("mask"), source.get_buffer("mask"))
    for name in ("one.weight", "norm.running_var", "norm.running_mean"):
        damaged = {**state, name: torch.full_like(state[name], float("nan"))}
        torch.save(damaged, tmp_path / "w.pth")
        with pytest.raises(InputError, match=f"not finite: the tensor '{name}'"):
            load_checkpoint(model, tmp_path / "w.pth")


def test_a_checkpoint_of_ultralytics_is_told_how_to_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ultralytics.nn.tasks.DetectionModel` lies in theirs: whole, by the name of its class."""
    package = ModuleType("ultralytics.nn.tasks")
    kind = type("DetectionModel", (nn.Linear,), {"__module__": package.__name__})
    package.DetectionModel = kind  # type: ignore[attr-defined]
    path = tmp_path / "yolo11n.pt"
    with monkeypatch.context() as patched:
        for name in ("ultralytics", "ultralytics.nn", package.__name__):
            patched.setitem(sys.modules, name, package)
        torch.save({"epoch": -1, "model": kind(2, 2)}, path)
    sentence = refused(path)
    assert "checkpoint of Ultralytics, a pickle" in sentence
    assert "save_file(YOLO('yolo11n.pt').model.float().state_dict(), 'yolo11n.safetensors')" in sentence
