"""Models of transformers in the form that tasks know: images in; logits, or boxes with classes and scores, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SCORE = 0.05
"""Least score of a box that is found."""
TINY = 1e-8
"""Least score of a class at a position whose logarithm is taken."""


class Logits(nn.Module):
    """The logits of a classifier (N, classes), or of a network for segmentation (N, classes, h, w)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


class QueriedMasks(nn.Module):
    """What the queries of a mask transformer say of every position, as logits (N, classes, h, w).

    Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (MaskFormer), 2021, section
    3.4: the sum over queries of probability of the class times probability of the mask; its logarithm, so that their
    softmax are these sums in parts of 1. It is trained by the task's loss on that, not by the set loss of the paper.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits, at the size of the masks."""
        outputs = self.model(pixel_values=images)
        classes = outputs.class_queries_logits.softmax(-1)[..., :-1]  # the last: no object
        masks = outputs.masks_queries_logits.sigmoid()
        scores = (classes.transpose(1, 2) @ masks.flatten(2)).unflatten(2, masks.shape[2:])
        logits: Tensor = scores.clamp_min(TINY).log()
        return logits


class Detector(nn.Module):
    """A detector with queries (DETR and its kin) in torchvision's convention.

    Labels are the model's own, from 1: class 0 is never found, as in COCO's numbering, which these models keep.

    Attributes:
        num_classes: of the head, with class 0.
        score_thresh: least score of a box that is found.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes, self.score_thresh = model, num_classes, SCORE

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Return a dictionary with the loss where targets are given in training; else what is found in each image.

        Args:
            images: each (C, H, W), of any sizes.
            targets: of each image boxes (M, 4) as corners in pixels, and labels (M,).
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        pixels, mask = batched(images)
        if self.training and targets is not None:
            labels = [_wanted(target, size) for target, size in zip(targets, sizes, strict=True)]
            return {"loss": self.model(pixel_values=pixels, pixel_mask=mask, labels=labels).loss}
        outputs = self.model(pixel_values=pixels) if mask is None else self.model(pixel_values=pixels, pixel_mask=mask)
        logits, boxes = outputs.logits, outputs.pred_boxes
        return [self._found(logits[place], boxes[place], size) for place, size in enumerate(sizes)]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits (N, queries, classes) and boxes (N, queries, 4): centre and size in parts of the image."""
        outputs = self.model(pixel_values=images)
        return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}

    def _found(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return boxes, labels and scores of one image, the best first: of each query its best class."""
        # a further column says that there is nothing; without one every class is scored by itself
        scored = logits.softmax(-1) if logits.shape[-1] > self.num_classes else logits.sigmoid()
        scores, labels = scored[:, 1 : self.num_classes].max(1)
        order = scores.argsort(descending=True)
        order = order[scores[order] >= self.score_thresh]
        height, width = size
        centre, half = boxes[order, :2], boxes[order, 2:] / 2
        corners = torch.cat([centre - half, centre + half], 1) * boxes.new_tensor([width, height, width, height])
        return {"boxes": corners, "labels": labels[order] + 1, "scores": scores[order]}


def batched(images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return images as one tensor (N, C, H, W), smaller ones filled up with zeros, and where they lie; None: all over.

    The mask (N, H, W) is 1 where a pixel is of the image.
    """
    if all(image.shape == images[0].shape for image in images):
        return torch.stack(list(images)), None
    height, width = (max(int(image.shape[dim]) for image in images) for dim in (-2, -1))
    pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.long, device=pixels.device)
    for place, image in enumerate(images):
        pixels[place, :, : image.shape[-2], : image.shape[-1]] = image
        mask[place, : image.shape[-2], : image.shape[-1]] = 1
    return pixels, mask


def _wanted(target: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return a target as transformers has it: centre and size of each box in parts of the image."""
    height, width = size
    low, high = target["boxes"].split(2, dim=1)
    relative = torch.cat([(low + high) / 2, high - low], 1) / low.new_tensor([width, height, width, height])
    return {"class_labels": target["labels"], "boxes": relative}
