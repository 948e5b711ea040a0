"""What a run relies on in a stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.runs.dry_run import dry_run
from compress.runs.pipeline import run
from compress.runs.recipe import Recipe, load_recipe
from compress.runs.stage import acts_of, as_list, stages

BASE: dict[str, Any] = {
    "version": 1,
    "name": "tried",
    "model": {"source": "builtin", "name": "cifar_resnet20"},
    "data": {"name": "digits", "image_size": 8, "limit_train": 40, "limit_test": 20, "batch_size": 20},
}
"""What a small recipe has besides the stage that is tried."""


def check_stage(name: str, section: Any, **others: Any) -> None:
    """Run a small recipe with `section` as that of the stage `name`, at a stretch and taken up again after the stage.

    Args:
        name: of a registered stage.
        section: its plain values, as a recipe has them.
        others: further sections, and those of `BASE` that are to be others; None leaves one out.

    Raises:
        AssertionError: the resolved section does not read back, an estimate is no time, the stage does not act or
            leaves no model, or a resumed run ends with another model or other metrics.
        InputError: the recipe is refused.
    """
    with TemporaryDirectory() as folder:
        sections = {**BASE, **others, name: section}
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in sections.items() if value is not None}))
        recipe = load_recipe(path)
        _check_config(name, recipe, Path(folder))
        if recipe.model is not None:
            seconds = dry_run(recipe, "cpu").seconds
            assert all(value >= 0 for value in seconds.values()), f"an estimate is less than nothing: {seconds}"
        whole = run(recipe, out=Path(folder) / "run", device="cpu")
        last = max(act.number for act in acts_of(recipe) if act.stage.name == name)
        report, before = whole.report, _weights(whole.directory)
        assert len(report["stages"]) >= last, f"{name} has not acted"
        _forget_what_followed(whole.directory, last)
        again = run(recipe, out=whole.directory, device="cpu", resume=True)
        after = _weights(whole.directory)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), (
            f"after {name} was finished, a resumed run ends with another model: see `restore`"
        )
        for key in ("baseline", "final"):
            same = {**report[key], "latency_ms": None} == {**again.report[key], "latency_ms": None}
            assert same, f"after {name} was finished, a resumed run has other metrics ({key})"


def _check_config(name: str, recipe: Recipe, folder: Path) -> None:
    """Raise AssertionError where the section is not what the resolved recipe says, or has a key without a word."""
    assert stages.get(name).description.strip(), f"the stage {name} has no description"
    recipe.save(folder / "resolved.yaml")
    try:
        same = load_recipe(folder / "resolved.yaml").resolved() == recipe.resolved()
    except InputError as error:
        raise AssertionError(f"the resolved section {name} is refused: {error}") from error
    assert same, f"the resolved section {name} reads back as another"
    for config in as_list(recipe.section(name)):
        for key, field in type(config).model_fields.items():
            assert field.description or key in ("kind", "name"), f"the key {name}.{key} has no description"


def _forget_what_followed(directory: Path, last: int) -> None:
    """Make a run look as if it had been stopped after its act number `last`; what that has written stays."""
    (directory / "report.json").unlink()
    shutil.rmtree(directory / "bundle", ignore_errors=True)
    for place in (directory / "stages").iterdir():
        if int(place.name.partition("-")[0]) > last:
            shutil.rmtree(place)
        else:
            json.loads((place / "details.json").read_text(encoding="utf-8"))


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the run's model; none where it left none."""
    return Bundle.load(directory).model.state_dict() if (directory / "bundle").is_dir() else {}
