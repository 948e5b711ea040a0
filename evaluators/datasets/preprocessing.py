"""How pixels become the model's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from compress.core.errors import InputError

if TYPE_CHECKING:
    from evaluators.datasets.images import Images

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise: what the model saw in training, and what its user has to do.

    `input_size` is (channels, height, width), or the sizes of other inputs after the batch; `mean` and `std` are per
    channel for pixels in 0..1; `crop_pct` is the share of the resized image that the centre crop keeps.
    """

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_dict` described; raises InputError when it is none."""
        try:
            input_size = tuple(int(v) for v in values["input_size"])
            mean, std = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
            result = cls(input_size, mean, std, str(values["interpolation"]), float(values["crop_pct"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"preprocessing: {dict(values)} is not complete ({error})") from error
        if not input_size or min(input_size) < 1:
            raise InputError(f"preprocessing: input_size {list(input_size)} holds no sizes above 0")
        if len(mean) != input_size[0] or len(std) != input_size[0]:
            raise InputError(f"preprocessing: mean and std need one value for each of {input_size[0]} channels")
        return result

    @classmethod
    def of_model(cls, hint: Mapping[str, Any], input_size: tuple[int, ...]) -> Preprocessing:
        """Return a model's own preprocessing at `input_size`, where there is no data to ask."""
        mean, std = _own(hint, input_size[0]) or ((0.5,) * input_size[0], (0.5,) * input_size[0])
        return cls(input_size, mean, std, str(hint.get("interpolation", "bilinear")), float(hint.get("crop_pct", 1.0)))


def choose(
    config: Images,
    hint: Mapping[str, Any],
    sides: tuple[int, ...],
    native_channels: int,
    measured: Statistics | None,
    crop_pct: float,
) -> Preprocessing:
    """Return the preprocessing: what the recipe says, else the model's (`hint`), else the data's (`measured`)."""
    own_channels = hint["input_size"][0] if hint.get("input_size") else None
    channels = config.channels or own_channels or native_channels
    mean, std = _own(hint, channels) or measured or ((0.5,), (0.5,))
    interpolation = config.interpolation or str(hint.get("interpolation", "bilinear"))
    return Preprocessing(
        (channels, *sides),
        per_channel("data.mean", config.mean or mean, channels),
        per_channel("data.std", config.std or std, channels),
        interpolation if interpolation in ("bilinear", "bicubic") else "bilinear",
        crop_pct,
    )


def _own(hint: Mapping[str, Any], channels: int) -> Statistics | None:
    mean, std = hint.get("mean"), hint.get("std")
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        return None
    return tuple(float(v) for v in mean), tuple(float(v) for v in std)


def per_channel(key: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel: as given, one for all, or the average of three for grey.

    Raises InputError, naming the recipe's `key`, for any other number of values.
    """
    if len(values) == channels:
        return tuple(values)
    if len(values) == 1:
        return tuple(values) * channels
    if channels == 1:
        return (sum(values) / len(values),)
    raise InputError(f"{key}: got {len(values)} values; allowed: 1 or {channels}, one for each channel")
