from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from compress.core.errors import InputError
from evaluators.datasets import Data, DataFacts, Loader, Preprocessing
from evaluators.datasets import DataConfig as DataConfigType
from evaluators.datasets.arrays import balanced
from evaluators.datasets.batch import Batch
from evaluators.datasets.loaders import ArrayLoader, augment, placed
from evaluators.tasks import DEFAULT

adapter: TypeAdapter[Any] = TypeAdapter(DataConfigType)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input_size": (3, 224, 224)}


def opened(hint: dict[str, Any] | None = None, model_size: int | None = None, seed: int = 0, **config: Any) -> Data:
    data = adapter.validate_python(config).load(DEFAULT, hint, model_size, seed)
    assert data is not None
    return data


def refused(**config: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(**config)
    (sentence,) = caught.value.problems
    assert "\n" not in sentence and sentence.startswith("data")
    return sentence


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(one, other, strict=True))
    return bool(pairs) and all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in pairs)


def split(loader: Loader | None) -> Loader:
    assert loader is not None
    return loader


@pytest.fixture
def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": generator.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(12) % 3,
    }


def npz(folder: Path, arrays: dict[str, Any], **changes: Any) -> str:
    path = folder / "data.npz"
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_digits_are_split_the_same_for_every_seed() -> None:
    one, other = opened(name="digits", seed=0), opened(name="digits", seed=1)
    assert split(one.train).num_samples == 1437 and split(one.test).num_samples == 360
    assert same(split(one.test).batches(), split(other.test).batches())
    labels = torch.cat([batch.targets for batch in split(one.test).batches()])
    assert labels.bincount().min() >= 34 and labels.bincount().max() <= 38


def test_digits_fit_the_recipe() -> None:
    data = opened(name="digits", image_size=16, channels=1, interpolation="bicubic")
    batch = next(iter(split(data.train).epoch(0)))
    images, labels = batch.inputs, batch.targets
    assert images.shape == (128, 1, 16, 16) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert (data.task.num_outputs, data.in_chans, data.image_size) == (10, 1, 16)
    assert adapter.validate_python({"name": "digits"}).describe() == DataFacts(10, 32, 3)


def test_pixels_are_resized_then_normalised_with_the_models_statistics() -> None:
    data = opened(IMAGENET, name="digits", image_size=8)
    from sklearn.datasets import load_digits

    images = torch.cat([batch.inputs for batch in split(data.test).batches()])
    grey = images[:, 1] * 0.224 + 0.456
    assert torch.allclose(grey.amax(), torch.tensor(1.0)) and torch.allclose(grey.amin(), torch.tensor(0.0), atol=1e-6)
    originals = {np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images}
    assert all((image * 255).round().byte().numpy().tobytes() in originals for image in grey)


def test_without_a_models_statistics_the_datas_are_used(tmp_path: Path, arrays: dict[str, Any]) -> None:
    data = opened(name="npz", path=npz(tmp_path, arrays), augment="none", batch_size=30)
    images = next(iter(split(data.train).epoch(0))).inputs
    assert images.mean((0, 2, 3)).abs().max() < 1e-3 and (images.std((0, 2, 3)) - 1).abs().max() < 1e-2
    assert opened(name="npz", path=npz(tmp_path, arrays), mean=[0.5], std=[0.25]).preprocessing.std == (0.25,) * 3


def test_same_seed_and_epoch_give_the_same_batches_from_any_start() -> None:
    train = split(opened(name="digits", batch_size=100).train)
    again = split(opened(name="digits", batch_size=100).train)
    assert len(train) == 14 == len(list(train.epoch(3)))
    assert same(train.epoch(3), again.epoch(3))
    assert same(list(train.epoch(3))[9:], train.epoch(3, start=9))
    assert not same(train.epoch(3), train.epoch(4))
    assert not same(train.epoch(3), split(opened(name="digits", batch_size=100, seed=1).train).epoch(3))


def test_batches_leave_the_global_generators_alone(folder: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]
    list(split(opened(name="digits").train).epoch(0))
    list(split(opened(name="imagefolder", path=str(folder), workers=0, batch_size=2).train).epoch(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]


def test_evaluation_gives_every_sample_once_in_order(tmp_path: Path, arrays: dict[str, Any]) -> None:
    test = split(opened(name="npz", path=npz(tmp_path, arrays), eval_batch_size=5).test)
    batches = list(test.batches())
    assert [len(batch) for batch in batches] == [5, 5, 2] and len(test) == 3
    assert torch.cat([batch.targets for batch in batches]).tolist() == arrays["y_test"].tolist()


def test_fewer_images_than_a_batch_make_one_batch(tmp_path: Path, arrays: dict[str, Any]) -> None:
    train = split(opened(name="npz", path=npz(tmp_path, arrays)).train)
    assert len(train) == 1 and len(next(iter(train.epoch(0))).targets) == 30


def test_shift_moves_each_image_by_itself_within_an_eighth() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 8, 8] = 1
    moved = augment(images, "shift", torch.Generator().manual_seed(0))
    places = moved.flatten(1).argmax(1)
    rows, columns = places // 16, places % 16
    assert moved.sum() == 64 and len(set(places.tolist())) > 10
    assert {int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())} == {6, 10}


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.arange(4.0).expand(200, 1, 4, 4)
    flipped = augment(images, "flip", torch.Generator().manual_seed(0))[:, 0, 0, 0] == 3
    assert 70 < int(flipped.sum()) < 130
    assert torch.equal(augment(images, "none", torch.Generator()), images)


@pytest.mark.parametrize("options", [{}, {"channels": 1, "augment": "crop_flip"}, {"image_size": 8, "augment": "flip"}])
def test_batches_are_prepared_where_the_images_lie(options: dict[str, Any]) -> None:
    train = split(opened(name="digits", **options).train)
    assert isinstance(train, ArrayLoader) and placed(train, "cpu") is train
    there = placed(train, "meta")  # a device that computes shapes only, and refuses tensors of another
    assert isinstance(there, ArrayLoader) and placed(there, "meta") is there
    theirs, ours = next(iter(there.epoch(0))), next(iter(train.epoch(0)))
    assert theirs.inputs.is_meta and theirs.targets.is_meta and torch.equal(theirs.index, ours.index)
    assert theirs.inputs.shape == ours.inputs.shape and theirs.inputs.stride() == ours.inputs.stride()
    assert all(batch.inputs.is_meta for batch in there.batches())


def test_limits_keep_classes_balanced() -> None:
    data = opened(name="digits", limit_train=50, limit_test=20)
    assert split(data.train).num_samples == 50 and split(data.test).num_samples == 20
    labels = torch.cat([batch.targets for batch in split(data.test).batches()])
    assert labels.bincount().tolist() == [2] * 10
    assert balanced(np.array([0, 0, 0, 1, 2, 2]), 4).tolist() == [0, 1, 3, 4]


def test_image_size_is_the_recipes_then_the_fixed_models_then_the_images(
    tmp_path: Path, arrays: dict[str, Any]
) -> None:
    path = npz(tmp_path, arrays)
    assert opened(IMAGENET, name="npz", path=path).image_size == 8
    assert opened(IMAGENET | {"fixed_input_size": True}, name="npz", path=path).image_size == 224
    assert opened(IMAGENET, 12, name="npz", path=path).image_size == 12
    assert opened(IMAGENET | {"fixed_input_size": True}, name="npz", path=path, image_size=16).image_size == 16


def test_grey_images_feed_colour_models_and_the_reverse(tmp_path: Path, arrays: dict[str, Any]) -> None:
    grey = {key: arrays[key][..., 0] for key in ("x_train", "x_test")}
    data = opened(IMAGENET, name="npz", path=npz(tmp_path, arrays, **grey))
    images = next(iter(split(data.test).batches())).inputs
    pixels = images * torch.tensor(IMAGENET["std"]).view(3, 1, 1) + torch.tensor(IMAGENET["mean"]).view(3, 1, 1)
    assert images.shape[1] == 3 and torch.allclose(pixels[:, 0], pixels[:, 2], atol=1e-5)
    assert adapter.validate_python({"name": "npz", "path": str(tmp_path / "data.npz")}).describe() == DataFacts(3, 8, 1)
    data = opened(name="npz", path=npz(tmp_path, arrays), channels=1)
    assert next(iter(split(data.test).batches())).inputs.shape[1] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_train": None}, ["no 'y_train'", "x_train, y_train, x_test, y_test"]),
        ({"x_train": np.zeros((30, 8, 8, 3), np.float32)}, ["x_train", "float32", "uint8"]),
        ({"x_test": np.zeros((12, 8, 8, 4), np.uint8)}, ["x_test", "(12, 8, 8, 4)"]),
        ({"x_test": np.zeros((12, 9, 9, 3), np.uint8)}, ["x_train", "x_test", "(9, 9, 3)"]),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": np.zeros(0, int)}, ["x_test", "(0, 8, 8, 3)"]),
        ({"y_train": np.arange(29) % 3}, ["y_train", "29 labels for 30 images"]),
        ({"y_train": np.arange(30) % 3 - 1}, ["y_train", "-1"]),
        ({"y_train": np.arange(30) / 3}, ["y_train", "float64", "integers"]),
        ({"y_train": np.arange(30).astype("m8[s]")}, ["y_train", "timedelta", "integers"]),
        ({"y_train": np.arange(30) % 3 + 10**12, "y_test": np.arange(12) % 3 + 10**12}, ["class 0"]),
        ({"x_train": np.zeros((30, 3, 8, 8), np.uint8)}, ["x_train", "(30, 3, 8, 8)", "np.moveaxis(x, 1, -1)"]),
        ({"x_train": np.array([np.zeros((8, 8, 3))] * 29 + [None], object)}, ["allow_pickle"]),
        ({"y_train": np.eye(30, dtype=int)}, ["y_train", "(30, 30)"]),
        ({"y_train": np.array([7] + [0, 1, 2] * 9 + [0, 1])}, ["y_train", "label 7", "data.num_classes"]),
        ({"y_test": np.array([9] + [0, 1, 2] * 3 + [0, 1])}, ["y_test", "label 9"]),
        ({"y_train": np.arange(30) % 3 * 2, "y_test": np.arange(12) % 3 * 2}, ["class 1"]),
        ({"y_train": np.zeros(30, int), "y_test": np.zeros(12, int)}, ["at least two classes"]),
        ({"y_train": np.array([None] * 30)}, ["allow_pickle"]),
    ],
)
def test_npz_refuses_wrong_arrays(
    tmp_path: Path, arrays: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    sentence = refused(name="npz", path=npz(tmp_path, arrays, **changes))
    assert "data.path" in sentence and all(word in sentence for word in words), sentence


def test_npz_takes_the_recipes_number_of_classes(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = npz(tmp_path, arrays, y_test=np.zeros(12, int))
    assert opened(name="npz", path=path, num_classes=5).task.num_outputs == 5
    assert "label 2; allowed: 0 to 1" in refused(name="npz", path=path, num_classes=2)


def test_npz_takes_labels_in_a_column(tmp_path: Path, arrays: dict[str, Any]) -> None:
    data = opened(name="npz", path=npz(tmp_path, arrays, y_train=arrays["y_train"][:, None].astype(np.uint8)))
    assert sorted(torch.cat([batch.targets for batch in split(data.train).batches()]).tolist()) == sorted(
        arrays["y_train"].tolist()
    )


def test_npz_refuses_wrong_files(tmp_path: Path, arrays: dict[str, Any]) -> None:
    assert "there is no file" in refused(name="npz", path=str(tmp_path / "absent.npz"))
    whole = Path(npz(tmp_path, arrays)).read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / "bad.npz").write_bytes(content)
        assert "bad.npz" in refused(name="npz", path=str(tmp_path / "bad.npz"))
    np.save(tmp_path / "one.npy", arrays["x_train"])
    assert "single array" in refused(name="npz", path=str(tmp_path / "one.npy"))


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, arrays: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    npz(tmp_path, arrays)
    assert opened(name="npz", path="~/data.npz").task.num_outputs == 3
    assert opened(name="imagefolder", path="~", workers=0).task.num_outputs == 2


def test_npz_that_changes_on_disk_is_read_again(tmp_path: Path, arrays: dict[str, Any]) -> None:
    assert opened(name="npz", path=npz(tmp_path, arrays)).task.num_outputs == 3
    path = npz(tmp_path, arrays, y_train=np.arange(30) % 4, y_test=np.arange(12) % 4)
    assert opened(name="npz", path=path).task.num_outputs == 4


def test_images_that_are_not_square_need_a_size(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = npz(tmp_path, arrays, x_train=arrays["x_train"][:, :6], x_test=arrays["x_test"][:, :6])
    assert "data.image_size" in refused(name="npz", path=path)
    assert opened(name="npz", path=path, image_size=8).image_size == 8


def test_torchvision_that_is_not_there_is_refused(tmp_path: Path) -> None:
    sentence = refused(name="torchvision", dataset="CIFAR10", path=str(tmp_path))
    assert "data.path" in sentence and "data.download" in sentence
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for content in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{content}-ubyte").write_bytes(b"\0\0\x08\x01\0\0")
    sentence = refused(name="torchvision", dataset="FashionMNIST", path=str(tmp_path))
    assert "FashionMNIST is not complete" in sentence


def test_torchvision_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = ("shirt", "shoe")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            count = 6 if train else 4
            self.data, self.targets = torch.zeros(count, 28, 28, dtype=torch.uint8), torch.arange(count) % 2

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", Fake)
    data = opened(name="torchvision", dataset="FashionMNIST", path=str(tmp_path))
    assert (data.task.num_outputs, data.in_chans, data.image_size) == (2, 1, 28)
    assert data.class_names == ["shirt", "shoe"]


def test_image_folder_is_read_with_the_models_preprocessing(folder: Path) -> None:
    hint = IMAGENET | {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.9}
    data = opened(hint, name="imagefolder", path=str(folder), workers=0, batch_size=4)
    assert data.class_names == ["cat", "dog"] and data.task.num_outputs == 2
    facts = adapter.validate_python({"name": "imagefolder", "path": str(folder)}).describe()
    assert (facts.num_outputs, facts.image_size) == (2, None)
    assert data.preprocessing == Preprocessing((3, 32, 32), IMAGENET["mean"], IMAGENET["std"], "bicubic", 0.9)  # type: ignore[arg-type]
    assert split(data.train).num_samples == 10 and len(split(data.train)) == 2
    batch = next(iter(split(data.test).batches()))
    images, labels = batch.inputs, batch.targets
    assert images.shape == (6, 3, 32, 32) and labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_image_folder_batches_depend_on_seed_and_epoch_only(folder: Path, workers: int) -> None:
    config = {
        "name": "imagefolder", "path": str(folder), "batch_size": 2, "image_size": 24,
        "auto_augment": "rand-m9-mstd0.5-inc1", "random_erase": 0.5,
    }  # fmt: skip
    train = split(opened(**config, workers=0).train)
    again = split(opened(**config, workers=workers).train)
    torch.manual_seed(workers)
    assert same(train.epoch(1), again.epoch(1))
    assert same(list(train.epoch(1))[3:], again.epoch(1, start=3))
    assert not same(train.epoch(1), train.epoch(2))


@pytest.mark.filterwarnings("error")
def test_no_more_processes_read_images_than_there_are_cores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    many, none = (
        split(opened(name="imagefolder", path=str(folder), workers=count, batch_size=2, image_size=24).train)
        for count in (8, 0)
    )
    assert same(many.epoch(0), none.epoch(0))


def test_image_folder_without_augmentation_or_in_grey(folder: Path) -> None:
    plain = opened(name="imagefolder", path=str(folder), workers=0, image_size=24, augment="none", limit_train=4)
    assert same(sorted_batches(split(plain.train).epoch(0)), sorted_batches(split(plain.train).epoch(1)))
    grey = opened(name="imagefolder", path=str(folder), workers=0, image_size=24, channels=1)
    assert next(iter(split(grey.test).batches())).inputs.shape == (6, 1, 24, 24)


def sorted_batches(batches: Any) -> list[Batch]:
    batch = next(iter(batches))
    order = batch.inputs.sum((1, 2, 3)).argsort()
    return [Batch(batch.inputs[order], batch.targets[order])]


def test_image_folders_may_be_called_otherwise(folder: Path) -> None:
    (folder / "train").rename(folder / "Training")
    (folder / "val").rename(folder / "valid")
    data = opened(name="imagefolder", path=str(folder), workers=0)
    assert (split(data.train).num_samples, split(data.test).num_samples) == (10, 6)
    (folder / "Training" / "cat").rename(folder / "Training" / "Cat")
    assert "'Cat' only in Training/, 'cat' only in valid/" in refused(name="imagefolder", path=str(folder))


def test_image_folder_refuses_wrong_folders(folder: Path, tmp_path: Path) -> None:
    assert "no directory" in refused(name="imagefolder", path=str(folder / "absent"))
    assert "none of val/" in refused(name="imagefolder", path=str(folder / "train"))
    (folder / "train" / "bird").mkdir()
    assert "bird" in refused(name="imagefolder", path=str(folder))
    Image.new("RGB", (8, 8)).save(folder / "train" / "bird" / "0.png")
    assert "'bird' only in train/" in refused(name="imagefolder", path=str(folder))
    (tmp_path / "empty" / "val").mkdir(parents=True)
    assert "no class folders" in refused(name="imagefolder", path=str(tmp_path / "empty"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_sentence(folder: Path, workers: int) -> None:
    (folder / "val" / "cat" / "1.png").write_bytes(b"no image")
    data = opened(name="imagefolder", path=str(folder), workers=workers, image_size=24)
    with pytest.raises(InputError, match=r"cannot read image .*1\.png") as caught:
        list(split(data.test).batches())
    assert "\n" not in str(caught.value)


def test_hugging_face_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install datasets" in refused(name="huggingface", dataset="cifar10")


def test_hugging_face_set_is_read_through_timm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("datasets")
    cache = str(tmp_path_factory.mktemp("cache"))
    config = {"name": "huggingface", "dataset": str(folder), "path": cache, "workers": 0}
    data = opened(**config, test_split="validation", image_size=24)
    assert data.class_names == ["cat", "dog"] and split(data.train).num_samples == 10
    assert next(iter(split(data.test).batches())).inputs.shape == (6, 3, 24, 24)
    assert "data.dataset" in refused(**config, test_split="absent")


def test_none_is_no_data() -> None:
    config = adapter.validate_python({"name": "none", "image_size": 64})
    assert config.load(DEFAULT) is None and config.describe() == DataFacts(None, 64, None)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "digit"},
        {"name": "digits", "image_sise": 32},
        {"name": "digits", "batch_size": 0},
        {"name": "digits", "std": [0.0]},
        {"name": "npz"},
        {"name": "torchvision", "dataset": "MNIST2", "path": "x"},
    ],
)
def test_config_refuses_what_it_does_not_know(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        adapter.validate_python(config)


def test_statistics_of_the_wrong_length_are_refused() -> None:
    assert "data.mean: got 2 values" in refused(name="digits", mean=[0.5, 0.5])


def test_preprocessing_survives_json() -> None:
    one = Preprocessing((3, 32, 32), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic", 0.9)
    assert Preprocessing.from_dict(one.to_dict()) == one
    for wrong in ({}, one.to_dict() | {"mean": [1]}, one.to_dict() | {"input_size": [3, 0, 1]}):
        with pytest.raises(InputError, match="preprocessing"):
            Preprocessing.from_dict(wrong)
