"""Training images to take ranges from, and others to judge by; test images are for the final figure alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress.core.errors import InputError
from compress.quantize.config import QuantizeConfig
from evaluators.datasets import Data, Loader
from evaluators.datasets.holdout import with_holdout


@dataclass(frozen=True)
class Images:
    """Parts of the training images that share none; their `batches` are as the model takes them, not augmented.

    `calibration` is None where the settings need no ranges.
    """

    calibration: Loader | None
    judged: Loader
    few: Loader
    """About `FEW` of those that are judged on."""
    learnt: Data
    """The data with the training images that are left."""


FEW = 128


def images_of(data: Data, config: QuantizeConfig, seed: int) -> Images:
    """Return the images to calibrate and to judge on.

    Raises:
        InputError: there are too few training images.
    """
    assert data.train is not None  # the recipe's checks refuse quantising without data
    there, kept = data.train.num_samples, 1 if config.finetune is None else 2
    if not config.calibrates:
        return _judging(data, config, seed, None)
    if config.calibration + kept > there:
        use = "judge by" if config.finetune is None else "judge by and to learn from"
        raise InputError(
            f"quantize.calibration: is taken from the {there} training images, and some are left to {use}; got "
            f"{config.calibration}; allowed 1 to {there - kept}"
        )
    calibration, left_over = _taken(data, config.calibration, seed)
    return _judging(left_over, config, seed, calibration)


def _judging(left: Data, config: QuantizeConfig, seed: int, calibration: Loader | None) -> Images:
    assert left.train is not None
    most = config.judged if config.finetune is None else min(config.judged, left.train.num_samples // 2)
    judged, others = _taken(left, most, seed)
    return Images(calibration, judged, _taken(replace(left, train=judged), FEW, seed)[0], others)


def _taken(data: Data, number: int, seed: int) -> tuple[Loader, Data]:
    """Return `number` training images, or all where there are no more, and the data without them (or all again)."""
    assert data.train is not None
    if number >= data.train.num_samples:
        return data.train, data
    parted = with_holdout(data, number / data.train.num_samples, seed)
    assert parted.test is not None
    return parted.test, replace(parted, test=data.test)
