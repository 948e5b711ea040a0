"""What is told before a run starts."""

from __future__ import annotations

import pytest

from compress.core import environment
from compress.runs.estimate import slow_precision
from compress.runs.recipe import load_recipe
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
    sentence = slow_precision(acts_of(recipe), device)
    if told:
        assert sentence is not None
        assert "finetune.precision" in sentence and "search.evaluator.train.precision" in sentence
        assert "train.precision, " not in sentence.replace("evaluator.train.precision", "")
    else:
        assert sentence is None
