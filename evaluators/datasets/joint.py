"""Image and target together: scaled, cropped, mirrored, normalised, with masks and boxes moving along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from evaluators.datasets.decoding import ToChannels
from evaluators.datasets.preprocessing import Preprocessing

IGNORED = 255
"""The class number of pixels that neither losses nor metrics count, such as those that fill up a mask."""


def boxed(boxes: Tensor, labels: Tensor, size: Sequence[int], **others: Tensor) -> dict[str, Tensor]:
    """Return the target of an image of `size` (height, width): boxes (M, 4) as corners in pixels, and labels (M,)."""
    corners = tv_tensors.BoundingBoxes(
        boxes.reshape(-1, 4).float(), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(size[0], size[1])
    )
    return {"boxes": corners, "labels": labels, **others}


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every training sample.

    Attributes:
        flip: probability of mirroring.
        scale: range of a factor on the size at which the image would just fit.
        color_jitter: strength of changes of brightness, contrast and saturation.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    color_jitter: float = 0.0


@dataclass(frozen=True)
class JointTransform:
    """Makes of an image and its mask or boxes what a model gets and what is wanted of it.

    The image is scaled until it just fits the model's input, its shape kept, and lies in the middle; what is left over
    is filled with the mean colour, in a mask with `IGNORED`, which becomes `ignored` in the end. With an `augmentation`
    the image is scaled by another factor, and cut or filled up at a random place. Boxes are cut at the edges; then
    none of less than a pixel is left.
    """

    preprocessing: Preprocessing
    augmentation: Augmentation | None = None
    ignored: int = IGNORED

    def resized(self, size: int) -> JointTransform:
        """Return the transform to `size` pixels a side."""
        sides = (self.preprocessing.input_size[0], size, size)
        return replace(self, preprocessing=replace(self.preprocessing, input_size=sides))

    def __call__(self, image: Any, target: Any) -> tuple[Tensor, Any]:
        """Return float32 (C, H, W), and an int64 mask (H, W), or float32 boxes (M, 4) with what belongs to each.

        Args:
            image: what `evaluators.datasets.decoding.decode` returns, or uint8 (3, H, W).
            target: a `Mask` of class numbers, or a dictionary of `BoundingBoxes` called boxes (corners, in pixels) and
                tensors with as many rows. Anything else stays as it is.

        Draws come from torch's global generator.
        """
        channels = self.preprocessing.input_size[0]
        if isinstance(image, Tensor) and image.shape[0] == 3 and channels == 1:
            image = F.rgb_to_grayscale(image)
        pixels = F.to_image(ToChannels(channels)(image))
        if self.augmentation or pixels.shape[1:] != self.preprocessing.input_size[1:]:
            steps = self._of_floats if pixels.is_floating_point() else self._of_bytes
            pixels, target = steps(pixels, target)
        if isinstance(target, tv_tensors.Mask):
            target = target.as_subclass(Tensor).long()
            target[target == IGNORED] = self.ignored
        elif isinstance(target, Mapping):
            target = self._within(target)
        normalised: Tensor = self._normalise(pixels).as_subclass(Tensor)
        return normalised, target

    def _within(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        boxes = F.clamp_bounding_boxes(target["boxes"]).as_subclass(Tensor).float()
        kept = torch.ones(len(boxes), dtype=torch.bool)
        if self.augmentation:  # what is judged by stays whole
            kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
        others = {name: values.as_subclass(Tensor) for name, values in target.items() if name != "boxes"}
        return {name: values[kept] for name, values in ({"boxes": boxes} | others).items()}

    @cached_property
    def _of_bytes(self) -> Any:
        return self._steps(255)

    @cached_property
    def _of_floats(self) -> Any:
        return self._steps(1)

    @cached_property
    def _normalise(self) -> Any:
        mean, std = list(self.preprocessing.mean), list(self.preprocessing.std)
        return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])

    def _steps(self, white: int) -> Any:
        """Return what moves pixels and targets, for pixels from 0 to `white`."""
        channels, *sides = self.preprocessing.input_size
        colour = [white * value for value in self.preprocessing.mean]
        fill: Any = {tv_tensors.Image: colour, tv_tensors.Mask: IGNORED, "others": 0}
        drawn = self.augmentation
        scale = drawn.scale if drawn else (1.0, 1.0)
        steps: list[Any] = [_Scale(sides, scale, v2.InterpolationMode(self.preprocessing.interpolation))]
        steps.append(
            _FillUp(sides, fill) if scale == (1.0, 1.0) else v2.RandomCrop(sides, pad_if_needed=True, fill=fill)
        )
        if drawn and drawn.flip:
            steps.append(v2.RandomHorizontalFlip(drawn.flip))
        if drawn and drawn.color_jitter:
            strength = drawn.color_jitter
            steps.append(v2.ColorJitter(strength, strength, strength if channels == 3 else 0))
        return v2.Compose(steps)


class _Scale(v2.Transform):  # type: ignore[misc] # torchvision has no types
    """Makes the image fit into `sides`, times a factor that is drawn from a range."""

    def __init__(self, sides: list[int], scale: tuple[float, float], mode: v2.InterpolationMode) -> None:
        super().__init__()
        self.sides, self.scale, self.mode = sides, scale, mode

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the new height and width."""
        low, high = self.scale
        factor = low if low == high else float(torch.empty(()).uniform_(low, high))
        size = v2.query_size(flat_inputs)
        factor *= min(side / own for side, own in zip(self.sides, size, strict=True))
        return {"size": [max(1, round(own * factor)) for own in size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return a part of the sample at its new size."""
        if isinstance(inpt, tv_tensors.Mask):  # torchvision takes the pixel before the nearest one
            pixels = inpt.as_subclass(Tensor).unsqueeze(0)
            nearest = F.resize_image(pixels, params["size"], interpolation=v2.InterpolationMode.NEAREST_EXACT)
            return tv_tensors.Mask(nearest.squeeze(0))
        return self._call_kernel(F.resize, inpt, size=params["size"], interpolation=self.mode, antialias=True)


class _FillUp(v2.Transform):  # type: ignore[misc]
    """Puts the image in the middle of `sides`."""

    def __init__(self, sides: list[int], fill: Any) -> None:
        super().__init__()
        self.sides, self.fill = sides, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return what is added left, above, right and below."""
        down, along = (side - own for side, own in zip(self.sides, v2.query_size(flat_inputs), strict=True))
        return {"padding": [along // 2, down // 2, along - along // 2, down - down // 2]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return a part of the sample, filled up."""
        if not any(params["padding"]):
            return inpt
        fill = self.fill.get(type(inpt), self.fill["others"])
        return self._call_kernel(F.pad, inpt, padding=params["padding"], fill=fill)
