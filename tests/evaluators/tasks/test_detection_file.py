"""Boxes of a file and of a model are matched before they are compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.core.errors import CompressError, InputError
from evaluators.tasks.detection_file import as_found, paired, says_nothing


def found(count: int = 60, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = 200 * torch.rand(count, 2, generator=generator)
    return {
        "boxes": torch.cat([corners, corners + 40], 1),
        "labels": torch.randint(1, 4, (count,), generator=generator),
        "scores": torch.rand(count, generator=generator).sort(descending=True).values,
    }


def picked(values: dict[str, Tensor], places: Tensor) -> dict[str, Tensor]:
    return {name: value[places] for name, value in values.items()}


def test_boxes_in_another_order_belong_together() -> None:
    expected = found()
    given = picked(expected, torch.randperm(60, generator=torch.Generator().manual_seed(1)))
    ours, theirs = paired(given, expected)
    assert all(torch.equal(ours[name], theirs[name]) and len(ours[name]) == 60 for name in expected)


def test_one_of_sixty_may_lack_a_partner_and_no_more() -> None:
    expected = found()
    for name, by in (("boxes", 5.0), ("scores", 0.01), ("labels", 3)):
        changed = {key: value.clone() for key, value in expected.items()}
        changed[name][7] += by
        assert len(paired(changed, expected)[0]["scores"]) == 59
        changed[name][8] += by
        with pytest.raises(CompressError, match="2 of 60 boxes have no partner"):
            paired(changed, expected)
    with pytest.raises(CompressError, match="2 of 60"):
        paired(picked(expected, torch.arange(58)), expected)
    with pytest.raises(CompressError, match="60 of 60"):
        paired(expected, picked(expected, torch.arange(0)))
    few = picked(expected, torch.arange(5))
    with pytest.raises(CompressError, match="1 of 5"):
        paired(picked(few, torch.arange(4)), few)


def test_more_may_lack_a_partner_where_scores_lie_close_together() -> None:
    expected = found() | {"scores": torch.linspace(0.5, 0.47, 60)}
    assert len(paired(picked(expected, torch.arange(55)), expected)[0]["scores"]) == 55
    with pytest.raises(CompressError, match="7 of 60 boxes have no partner"):
        paired(picked(expected, torch.arange(53)), expected)


def test_equal_scores_and_nothing_found_prove_nothing() -> None:
    assert not says_nothing(found())
    assert says_nothing(picked(found(), torch.arange(0)))
    assert says_nothing(found() | {"scores": torch.full((60,), 0.2)})
    assert not says_nothing({"cls_logits": torch.zeros(1, 5, 3)})


def test_what_a_file_finds_is_told_apart_by_image() -> None:
    outputs = found(5)
    (one,) = as_found(outputs, 1)
    assert torch.equal(one["boxes"], outputs["boxes"])
    first, second = as_found(outputs | {"counts": torch.tensor([4, 1])}, 2)
    assert len(first["scores"]) == 4 and torch.equal(second["labels"], outputs["labels"][4:])
    with pytest.raises(InputError, match="counts is missing"):
        as_found(outputs, 2)
