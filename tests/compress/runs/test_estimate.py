"""What is told before a run starts."""

from __future__ import annotations

import pytest

from compress.bundle import open_model
from compress.export.exporters import COMPARED_SECONDS
from compress.runs.estimate import estimate, look_ahead
from compress.runs.recipe import load_recipe
from compress.runs.stage import acts_of


@pytest.mark.parametrize(("given", "files"), [({}, 1), ({"prune": {"kind": "structure", "budget": {"macs": 0.5}}}, 2)])
def test_an_export_is_estimated_for_each_file_with_the_timing_that_auto_chooses_by(
    given: dict[str, object], files: int
) -> None:
    def seconds(exporter: str) -> float:
        more = {"export.exporter": exporter, "data.limit_train": 64, "data.limit_test": 16, "quantize.finetune": None}
        recipe = load_recipe("quantize_digits.yaml", {**more, **given})
        assert recipe.model is not None
        opened = open_model(recipe.model, recipe.data, recipe.seed, recipe.task)
        outlook = look_ahead(acts_of(recipe), opened.bundle, opened.data, recipe, "cpu")
        acts = [act for act in acts_of(recipe) if act.stage.name in ("train", "export")]
        return dict(estimate(acts, outlook))["export"]

    one = seconds("torchscript")
    assert seconds("auto") == pytest.approx(2 * one + files * COMPARED_SECONDS / 2)
