from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.core.errors import InputError
from evaluators.datasets import Data
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import with_holdout
from evaluators.datasets.imagefolder import ImageFolderConfig
from evaluators.datasets.loaders import placed
from evaluators.datasets.views import How, Views, views_of
from evaluators.tasks import DEFAULT


def digits(channels: int = 3) -> Data:
    found = DigitsConfig(name="digits", image_size=16, limit_train=100, batch_size=32, channels=channels)  # type: ignore[arg-type]
    return with_holdout(found.load(DEFAULT, seed=0), 0.3, 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def files(folder: Path, augment: str = "timm") -> Data:
    options = {"name": "imagefolder", "path": str(folder), "image_size": 16, "batch_size": 3, "workers": 0}
    found = ImageFolderConfig.model_validate({**options, "augment": augment}).load(DEFAULT, seed=0)
    return with_holdout(found, 0.4, 0)


@pytest.mark.parametrize("how", ["data", "byol"])
@pytest.mark.parametrize("kind", ["arrays", "grey arrays", "files"])
def test_a_batch_has_views_of_the_same_images_that_differ(kind: str, how: How, folder: Path) -> None:
    data = files(folder) if kind == "files" else digits(1 if kind == "grey arrays" else 3)
    assert data.train is not None
    loader = Views(data, 4, how)
    batches, plain = list(loader.epoch(1)), list(data.train.epoch(1))
    assert len(batches) == len(loader) == len(plain)
    for batch, expected in zip(batches, plain, strict=True):
        assert batch.index is not None and expected.index is not None
        assert torch.equal(batch.index, expected.index)
        views = views_of(batch)
        assert [view.shape for view in views] == 4 * [expected.inputs.shape]  # type: ignore[union-attr]
        assert not any(torch.equal(views[0], other) for other in views[1:])
    again = next(loader.epoch(1, start=1))
    assert all(torch.equal(a, b) for a, b in zip(views_of(again), views_of(batches[1]), strict=True))
    assert not torch.equal(views_of(next(loader.epoch(2)))[0], views_of(batches[0])[0])


def test_the_first_view_is_what_training_sees() -> None:
    data = digits()
    assert data.train is not None
    for batch, plain in zip(Views(placed_data(data), 2).epoch(3), data.train.epoch(3), strict=True):
        assert torch.equal(views_of(batch)[0], plain.inputs)  # type: ignore[arg-type]


def placed_data(data: Data) -> Data:
    assert data.train is not None
    return Data(data.task, data.preprocessing, placed(data.train, "cpu"), data.test, data.class_names)


@pytest.mark.parametrize("how", ["data", "byol"])
def test_held_out_images_have_fixed_views(how: How, folder: Path) -> None:
    for data in (digits(), files(folder)):
        assert data.test is not None
        held_out = Views(data, 2, how, held_out=True)
        first, second = list(held_out.batches()), list(held_out.batches())
        assert sum(len(batch) for batch in first) == data.test.num_samples
        for batch, same in zip(first, second, strict=True):
            assert torch.equal(views_of(batch)[1], views_of(same)[1])
            assert not torch.equal(views_of(batch)[0], views_of(batch)[1])


def test_data_without_augmentation_have_no_views(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data.augment: got none, and views of an image must differ; allowed: timm"):
        Views(files(folder, "none"), 2)
