"""Detectors as files have them: images (N, C, H, W) in, tensors out; and whether two detectors find the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import CompressError, InputError

FOUND = ("boxes", "labels", "scores")
"""What a model finds in an image: float32 (M, 4), int64 (M,), float32 (M,), the best first."""
COUNTS = "counts"
"""The output that says how much of the others is of each image, int64 (N,), where a file takes several."""
PROPOSALS = "proposals"
NEAR = 1e-3
"""How far a box and its partner may be apart, in terms of the largest coordinate, and their scores."""
ODD = 0.02
"""Share of the boxes that may lack a partner: rounding decides between boxes of nearly the same score or overlap."""
CROWDED, ODD_IN_CROWDS = 0.1, 0.1
"""Where the scores of all boxes differ by less, in terms of the best, it decides more often: the share there."""
TIED = 1e-6
THRESHOLDS = ("score_thresh", "threshold")
"""What modules call the score that a box needs to be found."""


class WithPostProcessing(nn.Module):
    """What a detector finds in images (N, C, H, W): boxes (M, 4), labels (M,), scores (M,), all images in a row.

    With several images `counts` (N,) says how many are of each.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return what is found."""
        return _in_a_row([{name: each[name] for name in FOUND} for each in self.model(list(images.unbind()))], "scores")


class OfHeads(nn.Module):
    """What the heads of a detector give for images (N, C, H, W), before anything is left out or suppressed.

    It is what the model's own method `heads` returns, if it has one. Of torchvision's detectors of one stage it is what
    each anchor gets, (N, A, ...). Those of two stages give, for each of their proposals (P, 4), logits (P, classes) and
    regressed boxes (P, 4 classes); the choice of proposals, with its suppression, is part of the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return it by name."""
        model: Any = self.model
        if hasattr(model, "heads"):
            return dict(model.heads(images))
        prepared, _ = model.transform(list(images.unbind()))
        features = model.backbone(prepared.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        if not hasattr(model, "roi_heads"):
            return dict(model.head(list(features.values())))
        proposals, _ = model.rpn(prepared, features)
        roi = model.roi_heads
        pooled = roi.box_head(roi.box_roi_pool(features, proposals, prepared.image_sizes))
        logits, regression = roi.box_predictor(pooled)
        counted = _in_a_row([{PROPOSALS: each} for each in proposals], PROPOSALS)
        return counted | {"class_logits": logits, "box_regression": regression}


def has_heads(model: nn.Module) -> bool:
    """Return whether it is known what the heads of `model` give."""
    one_stage, two_stages = ("transform", "backbone", "head"), ("transform", "backbone", "rpn", "roi_heads")
    return any(all(hasattr(model, name) for name in each) for each in (("heads",), one_stage, two_stages))


def of_heads(model: nn.Module) -> OfHeads:
    """Return the model's heads; InputError where it cannot be told what they give."""
    if has_heads(model):
        return OfHeads(model)
    raise InputError(
        "export.post_processing: what the heads of this model give is not known; give it a method heads(images) that "
        "returns a dictionary of tensors for images (N, C, H, W), or leave false out"
    )


def substitutes(model: nn.Module, expected: Sequence[Mapping[str, Tensor]]) -> list[nn.Module]:
    """Return what can be compared in the place of a file whose outputs say too little: none where they say enough.

    Args:
        model: the detector, in evaluation mode.
        expected: what it finds in each batch of images.
    """
    if not all(says_nothing(each) for each in expected):
        return []
    found: list[nn.Module] = [OfHeads(model)] if has_heads(model) else []
    eager = copy.deepcopy(model)
    for module in eager.modules():
        for name in THRESHOLDS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
                found = [each for each in found if isinstance(each, OfHeads)] + [WithPostProcessing(eager)]
    return found


def says_nothing(found: Mapping[str, Tensor]) -> bool:
    """Return whether nothing is found, or that whose order rounding decides, since many scores are the same."""
    if "scores" not in found or found["scores"].ndim != 1:
        return False
    scores = found["scores"].double().sort().values
    tied = (scores.diff() <= TIED * scores.abs().max()).sum() if len(scores) else 0
    return len(scores) == 0 or int(tied) > ODD * len(scores)


def paired(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return what a file gives and what the model does, each box at the place of its partner.

    Partners have one label, scores and boxes that are `NEAR`; of each side a share `ODD` may lack one. Outputs without
    boxes of one image after the other are returned as they are, and none where the model's say nothing.

    Raises:
        CompressError: more lack a partner.
    """
    key = "boxes" if "labels" in expected else PROPOSALS
    if key not in expected:
        return given, expected
    if key == "boxes" and len(expected[key]) and says_nothing(expected):
        return {}, {}
    ours, theirs = _partners(given, expected, key)
    most = max(len(given[key]), len(expected[key]))
    odd = ODD_IN_CROWDS if key == "boxes" and _crowded(expected["scores"]) else ODD
    if most - len(ours) > odd * most:
        raise CompressError(
            f"{most - len(ours)} of {most} {key} have no partner (of the same label, scores within {NEAR:g}, corners "
            f"within {NEAR:g} of the largest coordinate; allowed are {odd:.0%})"
        )
    names = [name for name in expected if name != COUNTS]
    return {name: given[name][ours] for name in names}, {name: expected[name][theirs] for name in names}


def _crowded(scores: Tensor) -> bool:
    return len(scores) > 0 and float(scores.max() - scores.min()) < CROWDED * float(scores.max())


def _partners(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], key: str) -> tuple[list[int], list[int]]:
    """Return the places in both of boxes that belong together, the nearest one of each."""
    ours, theirs = given[key].double(), expected[key].double()
    apart = (ours[:, None] - theirs[None]).abs().amax(2) / max(1.0, float(theirs.abs().max()) if len(theirs) else 1.0)
    if key == "boxes":
        scores = (given["scores"].double()[:, None] - expected["scores"].double()[None]).abs()
        apart = apart.maximum(scores).where(given["labels"][:, None] == expected["labels"][None], torch.inf)
    pairs = []
    for place in range(len(theirs)):
        if len(ours) and float(apart[:, place].min()) <= NEAR:
            nearest = int(apart[:, place].argmin())
            pairs.append((nearest, place))
            apart[nearest] = torch.inf
    return [one for one, _ in pairs], [other for _, other in pairs]


def as_found(outputs: Mapping[str, Tensor], images: int) -> list[dict[str, Tensor]]:
    """Return what a file finds in a batch as models give it: boxes, labels and scores of each of its first `images`.

    Raises:
        InputError: there are none, or it is not told of which image they are.
    """
    missing = [name for name in FOUND if name not in outputs]
    if missing:
        raise InputError(
            f"its outputs are {', '.join(outputs) or 'none'}; {', '.join(FOUND)} are needed, as files with "
            "post-processing have them"
        )
    counts = outputs[COUNTS].tolist() if COUNTS in outputs else [len(outputs["scores"])]
    if len(counts) < images:
        raise InputError(f"its outputs do not tell the {images} images of a batch apart: {COUNTS} is missing")
    parts = {name: outputs[name].split(counts) for name in FOUND}
    return [{name: parts[name][place] for name in FOUND} for place in range(images)]


def _in_a_row(found: Sequence[Mapping[str, Tensor]], counted: str) -> dict[str, Tensor]:
    if len(found) == 1:
        return dict(found[0])
    joined = {name: torch.cat([each[name] for each in found]) for name in found[0]}
    rows = [each[counted] if each[counted].ndim == 1 else each[counted][:, 0] for each in found]
    return joined | {COUNTS: torch.stack([torch.ones_like(each).sum() for each in rows]).long()}
