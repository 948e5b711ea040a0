"""A dry run: what a recipe would remove, the cost it would leave, and how long it would take. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress.bundle import Opened, open_model
from compress.core.environment import choose_devices, settle_threads
from compress.core.errors import InputError
from compress.core.formatting import count, percent_change
from compress.core.text_table import text_table
from compress.prune.details import whole_lines
from compress.runs.estimate import estimate, look_ahead, sentence
from compress.runs.recipe import Recipe
from compress.runs.remarks import remarks
from compress.runs.stage import acts_of, sections_of


@dataclass(frozen=True)
class DryRun:
    """Model and data, the details of each pruning, the predicted cost as (before, after), the seconds of each part."""

    name: str
    start: str
    steps: tuple[dict[str, Any], ...]
    predicted: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "start": self.start,
            "steps": list(self.steps),
            "predicted": {key: list(pair) for key, pair in self.predicted.items()},
            "seconds": {key: round(value, 1) for key, value in self.seconds.items()},
            "notes": list(self.notes),
        }

    def print(self) -> None:
        """Print what it starts from, tables of what goes and what stays, the predictions and the estimate."""
        print(self.start)
        for step in self.steps:
            _print_step(step)
        for key, (before, after) in self.predicted.items():
            print(f"{key.replace('_', ' ')}  {count(before)} → {count(after)}  ({percent_change(before, after)})")
        for note in self.notes:
            print(note)
        print(sentence(list(self.seconds.items())))


def dry_run(recipe: Recipe, device: str = "auto") -> DryRun:
    """Plan what `recipe` would remove from the model as it is before training.

    Raises `InputError` as a run would: for wrong input, globs that match nothing, budgets that cannot be met.
    """
    chosen = choose_devices(device)
    try:
        return _dry_run(recipe, chosen)
    except InputError as error:
        raise recipe.located(error) from error


def _dry_run(recipe: Recipe, devices: Sequence[str]) -> DryRun:
    opened = open_model(recipe.given_model, recipe.data, recipe.seed, recipe.task)
    bundle = opened.bundle
    before = bundle.costs()
    settle_threads(before["macs"] * getattr(recipe.data, "batch_size", 1))
    acts = acts_of(recipe)
    outlook = look_ahead(acts, bundle, opened.data, recipe, devices[0])
    seconds = dict(estimate(acts, outlook, len(devices)))
    for stage, config in sections_of(recipe):
        bundle = stage.foresee(bundle, config, outlook)
    after = bundle.costs()
    predicted = {key: (before[key], after[key]) for key in before if key in ("macs", "params") or bundle.masks}
    notes = (*outlook.notes, *remarks(recipe, acts, devices[0]))
    return DryRun(recipe.name, _start(opened), tuple(outlook.steps), predicted, seconds, notes)


def _start(opened: Opened) -> str:
    """Return the model, its input and its weights, and the data, as one line."""
    bundle, data = opened.bundle, opened.data
    told = [f"{bundle.base.name}  {bundle.takes}"]
    if data is not None:
        numbers = [f"{data.train.num_samples} to train"] if data.train is not None else []
        numbers += [f"{data.test.num_samples} to test"] if data.test is not None else []
        told.append(f"images {', '.join(numbers)}")
    return "  ".join([*told, *opened.told])


def _print_step(step: dict[str, Any]) -> None:
    rows = [
        (row["name"].removesuffix(f":{row['kind']}"), row["kind"], str(row["before"]), str(row["after"]))
        for row in step.get("layers", ())
    ]
    if rows:
        print(text_table(("layer", "kind", "before", "after"), rows, left=2))
    if step.get("blocks_removed"):
        print(f"blocks removed: {', '.join(step['blocks_removed'])}")
    if step.get("align"):
        print(f"widths in multiples of {step['align']}")
    for line in step.get("notes", ()):
        print(line)
    for line in whole_lines((skip["layer"], skip["reason"]) for skip in step.get("skipped", ())):
        print(line)
