"""What is told before a run of settings that are seldom what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compress.core import environment
from compress.runs.recipe import load_recipe
from compress.runs.remarks import remarks
from compress.runs.stage import acts_of


@pytest.mark.parametrize(
    ("flags", "device", "told"),
    [
        (["avx2", "fma"], "cpu", True),
        (["avx2", "avx512_bf16"], "cpu", False),
        (["asimd", "bf16"], "cpu", False),
        ([], "cpu", False),  # not known
        (["avx2"], "cuda", False),
    ],
)
def test_bfloat16_is_told_to_be_slow_where_the_processor_has_it_not(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], device: str, told: bool
) -> None:
    monkeypatch.setattr(environment, "cpu", lambda: ("a processor", flags))
    given = {"finetune.precision": "bf16", "search.evaluator.train.precision": "bf16", "train.precision": "32"}
    recipe = load_recipe("search_digits_mobilenetv3.yaml", given | {"finetune.epochs": 1})
    sentence = " ".join(remarks(recipe, acts_of(recipe), device))
    if told:
        assert "finetune.precision" in sentence and "search.evaluator.train.precision" in sentence
        assert "train.precision, " not in sentence.replace("evaluator.train.precision", "")
    else:
        assert not sentence


PRUNE = {"kind": "structure", "budget": {"macs": 0.5}}


def told(**given: Any) -> str:
    recipe = load_recipe("resnet_digits.yaml", {"prune": PRUNE, "finetune": {"epochs": 1}} | given)
    return " ".join(remarks(recipe, acts_of(recipe), "cpu"))


def test_random_weights_that_nothing_trains_are_told() -> None:
    sentence = told(train=None)
    assert sentence.startswith("model: ") and "random weights" in sentence
    assert "before prune" in sentence and "model.checkpoint" in sentence


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"train": None, "prune": None},  # the fine-tuning is a training
        {"train": None, "prune": None, "finetune": None},
        {"train": None, "finetune": None, "data": {"name": "none"}},  # there are no accuracies
        {"train": None, "model": {"source": "python", "name": "torch.nn:Flatten"}},  # its code may give it weights
    ],
)
def test_nothing_is_told_where_all_is_well(given: dict[str, Any]) -> None:
    assert not told(**given)


def test_nothing_is_told_of_given_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    assert not told(**{"train": None, "model.checkpoint": str(file)})
