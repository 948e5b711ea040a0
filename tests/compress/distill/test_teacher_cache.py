"""The kept outputs of a teacher stand for the teacher, for the training that they were made for and no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from compress.cli import app
from compress.core.errors import InputError
from compress.distill import cache_writer, teacher_cache
from compress.distill.cache_writer import cache_teacher
from compress.distill.finetune import DistillStageConfig
from compress.distill.teacher_cache import marks
from compress.training.step import StepContext
from evaluators.datasets.batch import Batch
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig, build_model

TASK = DEFAULT.bind(10, (3, 8, 8))

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "taught",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {
        "name": "digits", "image_size": 8, "limit_train": 70, "limit_test": 20, "batch_size": 32,
        "augment": "crop_flip",
    },
    "distill": {
        "loss": {"loss": "kd", "weight": 1.0},
        "teachers": {"big": {"model": {"name": "resnet10t"}, "untrained": True, "cache": "kept"}},
        "epochs": 2,
        "mixup": 0.3,
        "evaluate_every": 0,
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("taught.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def cached(*changes: str) -> Any:
    flags = [word for change in changes for word in ("--set", change)]
    return CliRunner().invoke(app, ["cache-teacher", "--recipe", "taught.yaml", "--quiet", "--json", *flags])


def losses(*changes: str, out: str) -> list[float]:
    flags = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["distill", "--recipe", "taught.yaml", "--quiet", "--out", out, *flags])
    assert done.exit_code == 0, done.stderr
    events = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if "loss" in event and "epoch" in event]


def test_training_from_the_cache_is_training_with_the_teacher(folder: Path) -> None:
    (row,) = json.loads(cached().stdout)
    assert (row["teacher"], row["epochs"], row["computed"]) == ("big", 2, 2)
    assert np.load("kept/epoch-0001/outputs.npy", mmap_mode="r").shape == (2, 32, 10)
    live, kept = losses("distill.teachers.big.cache=null", out="live"), losses(out="kept-run")
    assert len(live) == 2
    assert kept == pytest.approx(live, abs=1e-5)
    again = json.loads(cached("distill.epochs=3").stdout)
    assert (again[0]["epochs"], again[0]["computed"]) == (3, 1)


def test_an_odd_image_that_mixing_leaves_out_is_left_out_of_the_cache(folder: Path) -> None:
    odd = "data.batch_size=35"
    assert cached(odd).exit_code == 0
    live, kept = losses(odd, "distill.teachers.big.cache=null", out="live"), losses(odd, out="kept-run")
    assert kept == pytest.approx(live, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("distill.epochs=3", "holds 2 of the 3 epochs of this training"),
        ("data.augment=none", "is of other images than update 0 learns from"),
        ("distill.mixup=0.4", "is of other images than update 0 learns from"),
        ("seed=4", "is of other images than update 0 learns from"),
        ("data.batch_size=16", "it has batch_size 32, this training 16"),
        ("data.limit_train=69", "it has samples 70, this training 69"),
        (
            "distill.teachers.big.model.name=resnet14t",
            "it has a model of name resnet10t, this training resnet14t",
        ),
        ("distill.teachers.big.cache=elsewhere", "'elsewhere' holds no outputs of a teacher; make it with"),
        (
            "distill.loss=[{loss: kd}, {loss: feature, layers: {layer1: layer1}}]",
            "teacher big has a cache of outputs, and no layers",
        ),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_by_name(change: str, says: str, folder: Path) -> None:
    assert cached().exit_code == 0
    done = CliRunner().invoke(app, ["distill", "--recipe", "taught.yaml", "--quiet", "--set", change])
    if "feature" in change and "unknown value" in done.stderr:
        pytest.skip("no loss of layers is registered")
    assert done.exit_code == 2
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_damaged_files_are_refused(folder: Path) -> None:
    assert cached().exit_code == 0
    whole = Path("kept/epoch-0000/outputs.npy").read_bytes()
    for file, content in (("epoch-0000/outputs.npy", whole[:-100]), ("teacher.json", b"{")):
        kept = Path("kept", file).read_bytes()
        Path("kept", file).write_bytes(content)
        done = CliRunner().invoke(app, ["distill", "--recipe", "taught.yaml", "--quiet"])
        assert done.exit_code == 2 and "is damaged" in done.stderr, done.stderr
        Path("kept", file).write_bytes(kept)
    shutil.rmtree("kept/epoch-0000")
    done = CliRunner().invoke(app, ["distill", "--recipe", "taught.yaml", "--quiet"])
    assert "distill.teachers.big.cache: 'kept' holds 1 of the 2 epochs" in done.stderr
    Path("file").touch()
    done = cached("distill.teachers.big.cache=file")
    assert done.exit_code == 2 and "distill.teachers.big.cache: 'file' is a file; name a folder" in done.stderr
    assert "distill.teachers.big.cache" in cached("distill.teachers.big.cache=file/below").stderr
    Path("other").mkdir()
    Path("other/file").write_text("mine")
    done = cached("distill.teachers.big.cache=other")
    assert done.exit_code == 2 and "'other' holds other files" in done.stderr
    assert cached("distill.teachers.big.cache=null").stderr.startswith("no teacher of the recipe has a cache")


def test_other_weights_in_the_same_file_are_another_teacher(folder: Path) -> None:
    for seed in (0, 1):
        module = build_model(ModelConfig(source="builtin", name="cifar_resnet20"), TASK, seed=seed).module
        save_file(module.state_dict(), "big.safetensors")
        model = "{source: builtin, name: cifar_resnet20, checkpoint: big.safetensors}"
        done = cached(f"distill.teachers.big.model={model}")
        assert done.exit_code == (0 if seed == 0 else 2), done.stderr
    assert "is of another training or teacher: it has weights" in done.stderr


def test_caching_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop in the middle of an epoch leaves its first batches, and the whole comes out as without one."""
    config = DistillStageConfig.model_validate(RECIPE["distill"])
    data = DigitsConfig.model_validate(RECIPE["data"]).load(DEFAULT)
    context = StepContext(config, data)
    teacher = config.teachers["big"]
    monkeypatch.setattr(cache_writer.time, "monotonic", ticking().__next__)  # progress is noted after every batch
    calls = 0

    def stopping(batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return marks(batch)

    monkeypatch.setattr(cache_writer, "marks", stopping)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher("big", teacher, context, seed=0)
    assert json.loads(Path("kept/epoch-0001.part/done.json").read_text()) == 1
    with pytest.raises(InputError, match="holds 1 of the 2 epochs"):
        teacher_cache.CachedTeacher("big", teacher, context)
    cache_teacher("big", teacher, context, seed=0)
    assert calls == 5
    cache_teacher("big", teacher.model_copy(update={"cache": "whole"}), context, seed=0)
    for file in sorted(Path("whole").rglob("*.npy")):
        assert np.array_equal(np.load(file), np.load(Path("kept") / file.relative_to("whole"))), file


def ticking() -> Iterator[float]:
    now = 0.0
    while True:
        now += 11
        yield now


def test_marks_tell_images_apart() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    here = marks(Batch(images, torch.zeros(4)))
    for other in (images.flip(3), images.roll(1, 2), images.flip(1), images.flip(0)):
        assert bool(((marks(Batch(other, torch.zeros(4))) - here).abs() > 0.005).all())


def test_the_model_before_compression_has_no_cache() -> None:
    with pytest.raises(ValueError, match="cache: the model before compression is not there yet"):
        DistillStageConfig.model_validate({"teachers": {"dense": {"cache": "kept"}}})
