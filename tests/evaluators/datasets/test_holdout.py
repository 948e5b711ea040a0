from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from compress.core.errors import InputError
from evaluators.datasets import Data, Preprocessing
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import resized, with_holdout
from evaluators.datasets.loaders import ArrayLoader
from evaluators.datasets.samples import ImageOnly, SampleLoader, classified
from evaluators.tasks import DEFAULT


def digits(**options: object) -> Data:
    data = DigitsConfig(name="digits", **options).load(DEFAULT, seed=0)  # type: ignore[arg-type]
    assert data is not None
    return data


def arrays(data: Data) -> tuple[ArrayLoader, ArrayLoader]:
    assert isinstance(data.train, ArrayLoader) and isinstance(data.test, ArrayLoader)
    return data.train, data.test


def pictures(loader: ArrayLoader) -> set[bytes]:
    return {image.numpy().tobytes() for image in loader.images}


def files(count: int) -> Data:
    """Grey images whose brightness is their number; two thirds are of class 0."""
    labels = [0 if number % 3 else 1 for number in range(count)]
    entries = classified(lambda index: Image.new("L", (4, 4), index), labels)

    def plain(image: Image.Image) -> torch.Tensor:
        return pil_to_tensor(image).float()

    def brighter(image: Image.Image) -> torch.Tensor:
        return pil_to_tensor(image).float() + 1000

    train = SampleLoader(
        entries, evaluation=ImageOnly(plain), training=ImageOnly(brighter), batch_size=8, workers=0, seed=0
    )
    test = SampleLoader(entries, evaluation=ImageOnly(plain), training=None, batch_size=16, workers=0, seed=0)
    return Data(DEFAULT.bind(2, (1, 4, 4)), Preprocessing((1, 4, 4), (0.0,), (1.0,)), train, test, ["a", "b"])


def test_held_out_images_are_training_images_that_are_not_trained_on() -> None:
    data = digits()
    whole, test = arrays(data)
    train, held = arrays(with_holdout(data, 0.25, 3))
    assert train.num_samples + held.num_samples == whole.num_samples == 1437
    assert held.num_samples == 359
    assert pictures(train) | pictures(held) == pictures(whole)
    assert not pictures(held) & pictures(train)
    assert len(pictures(held) & pictures(test)) == len(pictures(held) & pictures(whole) & pictures(test))
    assert arrays(data)[0].num_samples == 1437 and arrays(data)[1] is test


def test_each_class_is_held_out_in_its_share() -> None:
    data = digits()
    train, held = arrays(with_holdout(data, 0.2, 0))
    ours, all_of = torch.bincount(held.labels), torch.bincount(torch.cat([held.labels, train.labels]))
    assert bool(((ours - 0.2 * all_of).abs() <= 1).all())


def test_classes_too_small_for_shares_are_held_out_at_random() -> None:
    train, held = arrays(with_holdout(digits(limit_train=30), 0.1, 0))  # three images cannot hold ten classes
    assert (train.num_samples, held.num_samples) == (27, 3)
    lonely = files(30)
    assert isinstance(lonely.train, SampleLoader)
    lonely.train.samples = replace(lonely.train.samples, labels=[0] * 29 + [1])
    assert split_of(lonely, 0) == split_of(lonely, 0) != split_of(lonely, 1)


def split_of(data: Data, seed: int) -> tuple[int, ...]:
    held = with_holdout(data, 0.2, seed).test
    assert isinstance(held, SampleLoader) and held.num_samples == 6
    return tuple(held.samples.indices)


def test_the_part_depends_on_the_seed_alone() -> None:
    data = digits()
    first, again, other = (arrays(with_holdout(data, 0.2, seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.labels, other.labels)


def test_held_out_images_are_not_augmented_and_come_in_evaluation_batches() -> None:
    data = digits(eval_batch_size=100)
    train, held = arrays(with_holdout(data, 0.2, 0))
    assert train.augment == "shift" and held.augment is None
    assert (train.batch_size, held.batch_size) == (128, 100)
    assert [len(batch) for batch in held.batches()] == [100, 100, 87]


def test_batches_of_held_out_images_mix_the_classes_of_sorted_data() -> None:
    data = digits(eval_batch_size=64)
    whole = data.train
    assert isinstance(whole, ArrayLoader)
    order = whole.labels.argsort(stable=True)
    whole.images, whole.labels = whole.images[order], whole.labels[order]
    _, held = arrays(with_holdout(data, 0.5, 0))
    assert all(len(batch.targets.unique()) == 10 for batch in list(held.batches())[:-1])


def test_image_files_are_held_out_too() -> None:
    data = with_holdout(files(30), 0.2, 0)
    assert data.train is not None and data.test is not None
    held = torch.cat([batch.inputs[:, 0, 0, 0] for batch in data.test.batches()])
    trained = torch.cat([batch.inputs[:, 0, 0, 0] for batch in data.train.epoch(0)])
    assert len(held) == 6 and data.train.num_samples == 24 and len(data.train) == 3
    assert bool((held < 1000).all()) and bool((trained >= 1000).all())
    assert not set(held.tolist()) & set((trained - 1000).tolist())
    assert torch.cat([batch.targets for batch in data.test.batches()]).bincount().tolist() == [4, 2]


def test_no_training_images_are_an_error() -> None:
    with pytest.raises(InputError, match="needs training images"):
        with_holdout(replace(digits(), train=None), 0.2, 0)


def test_too_few_images_to_hold_any_out_are_an_error() -> None:
    with pytest.raises(InputError, match=r"of 2 training images, 0\.1 cannot be held out"):
        with_holdout(files(2), 0.1, 0)


def test_resized_images_come_from_the_stored_ones() -> None:
    data = resized(digits(image_size=16), 24)
    direct = digits(image_size=24)
    assert data.image_size == 24 and data.test is not None and direct.test is not None
    ours, expected = next(iter(data.test.batches())).inputs, next(iter(direct.test.batches())).inputs
    assert torch.equal(ours, expected)
    assert resized(direct, 24) is direct


def test_batches_of_files_are_resized() -> None:
    data = resized(files(8), 6)
    assert data.train is not None and data.test is not None
    assert next(iter(data.test.batches())).inputs.shape == (8, 1, 6, 6)
    assert next(iter(data.train.epoch(0))).inputs.shape == (8, 1, 6, 6)
    numbers = np.sort(next(iter(data.test.batches())).inputs[:, 0, 3, 3].numpy())
    assert np.allclose(numbers, np.arange(8))
