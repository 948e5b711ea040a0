"""What a section `supernet` is beside the other sections of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from compress.cli import app

SUPERNET: dict[str, Any] = {
    "version": 1,
    "name": "it",
    "data": {"name": "digits", "image_size": 16},
    "supernet": {"space": {"name": "nas_bench_201"}, "method": "single_path", "epochs": 1},
}
TRAIN = {"train": {"epochs": 1}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        (TRAIN, "supernet.method.name: single_path ends in no architecture, which section train needs"),
        ({**TRAIN, "supernet": {**SUPERNET["supernet"], "method": "differentiable"}}, None),
        (
            {"supernet": {**SUPERNET["supernet"], "found_options": {"cells": 2}}},
            "supernet.found_options: method single_path ends in no architecture; leave them out",
        ),
        ({**TRAIN, "model": {"source": "builtin", "name": "cifar_resnet20"}}, None),
    ],
    ids=["alone", "none found", "one found", "nothing to build", "one given"],
)
def test_what_needs_a_model_needs_one_that_is_found_or_given(
    changes: dict[str, Any], problem: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**SUPERNET, **changes}))
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == (0 if problem is None else 2), result.output
    assert problem is None or problem in result.output
