"""What of a model can be pruned: groups of units, what each unit costs, blocks, and what stays whole and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from compress.bundle import open_model
from compress.core.errors import InputError
from compress.core.formatting import count
from compress.core.run_paths import misled
from compress.core.text_table import text_table
from compress.graph.graph import Graph, Group
from compress.latency_model.build import latency_model
from compress.prune.details import whole_lines
from compress.runs.catalog import find_recipe
from compress.runs.latency_inspection import LatencyInspection
from compress.runs.recipe import check_model, load_recipe
from compress.runs.recipe_file import section
from evaluators.datasets import DataConfig
from evaluators.latency.measure import LatencyConfig
from evaluators.latency.width_multiple import width_multiple
from evaluators.tasks import TaskConfig
from spaces.zoo import ModelConfig, named

ALIGNED_KINDS = ("channels", "mlp")


@dataclass(frozen=True)
class GroupRow:
    """One group: how many units it has, whether the width is a multiple of the target's, what one unit costs."""

    name: str
    kind: str
    units: int
    repeats: int
    aligned: bool | None
    macs_per_unit: int
    params_per_unit: int


@dataclass(frozen=True)
class Inspection:
    """The prunable parts of a model; MACs are those of one sample, of which `takes` tells all sizes."""

    model: str
    input_size: tuple[int, ...]
    takes: str
    params: int
    macs: int
    width_multiple: int
    groups: tuple[GroupRow, ...]
    blocks: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    ties: tuple[tuple[str, ...], ...] = ()
    latency: LatencyInspection | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["groups"] = [asdict(row) for row in self.groups]
        found["skipped"] = [{"layer": layer, "reason": reason} for layer, reason in self.skipped]
        found["latency"] = None if self.latency is None else self.latency.to_dict()
        return found

    def print(self) -> None:
        """Print the inspection as a table."""
        print(f"{self.model}  {self.takes}  params {count(self.params)}  MACs {count(self.macs)}")
        print(_table(self.groups))
        print(f"widths run fastest here in multiples of {self.width_multiple}")
        for tie in self.ties:
            print(f"keep the same fraction: {', '.join(tie)}")
        if self.blocks:
            print(f"residual blocks that can be removed: {', '.join(self.blocks)}")
        for line in whole_lines(self.skipped):
            print(line)
        if self.latency is not None:
            self.latency.print()


def inspect_model(name: str, overrides: Mapping[str, Any] | None = None, timed: bool = False) -> Inspection:
    """Return what of the model `name` can be pruned and, where it is `timed`, where its time goes.

    `name` is a timm model, `source:name`, a bundle or run directory, or a recipe. It is timed as the recipe's section
    `latency` or overrides of its keys say.

    Raises:
        InputError: the name or a key is wrong, or the settings do not suit the model.
        CompressError: timing failed.
    """
    model, data, task, latency = _configs(name, overrides or {}, timed)
    bundle = open_model(model, data, task=task).bundle
    graph, costs = bundle.known.graph(bundle.model, bundle.example_inputs()), bundle.costs()
    multiple = width_multiple(latency.target).value
    found = latency_model(bundle.model, graph, bundle.example_inputs(), latency) if timed else None
    return Inspection(
        model=model.name,
        input_size=bundle.preprocessing.input_size,
        takes=bundle.takes,
        params=costs["params"],
        macs=costs["macs"],
        width_multiple=multiple,
        groups=tuple(_row(group, graph, multiple) for group in graph.groups),
        blocks=graph.blocks,
        skipped=tuple((skip.layer, skip.reason) for skip in graph.skipped),
        ties=graph.ties,
        latency=None if found is None else LatencyInspection.of(found),
    )


def _configs(
    name: str, overrides: Mapping[str, Any], timed: bool
) -> tuple[ModelConfig, DataConfig | None, TaskConfig | None, LatencyConfig]:
    """Return the sections `model`, `data`, `task` and `latency` that `name` stands for."""
    if Path(name).suffix in (".yaml", ".yml"):
        recipe = load_recipe(find_recipe(name), overrides)
        return recipe.given_model, recipe.data, recipe.task, recipe.section("latency") or LatencyConfig()
    if Path(name).suffix == ".onnx":
        raise InputError(
            f"MODEL  {name!r} is an ONNX file, which holds no modules that could be pruned; give the bundle or the run "
            "that it comes from (`compress latency` and `compress eval` take files)"
        )
    what = misled(Path(name))
    if what is not None and len(Path(name).parts) > 1 and ":" not in name:
        raise InputError(f"MODEL  {name!r} {what}")
    given = {"source": "bundle", "name": name} if Path(name).is_dir() else named(name)
    timing = {key: value for key, value in overrides.items() if timed and key.partition(".")[0] == "latency"}
    latency = section("latency", LatencyConfig, timing)
    others = {key: value for key, value in overrides.items() if key not in timing}
    config = section("model", ModelConfig, {**{f"model.{key}": value for key, value in given.items()}, **others})
    problems = [f"MODEL  {'.'.join(map(str, path))}: {text}" for path, text in check_model(config)]
    if problems:
        raise InputError(*problems)
    return config, None, None, latency


def _row(group: Group, graph: Graph, multiple: int) -> GroupRow:
    less = {group.name: group.size - 1}
    return GroupRow(
        name=group.name,
        kind=group.kind,
        units=group.size,
        repeats=group.repeats,
        aligned=group.size * group.repeats % multiple == 0 if group.kind in ALIGNED_KINDS else None,
        macs_per_unit=graph.macs() - graph.macs(less),
        params_per_unit=graph.params() - graph.params(less),
    )


def _table(groups: tuple[GroupRow, ...]) -> str:
    titles = ("group", "kind", "units", "aligned", "MACs a unit", "params a unit")
    rows = []
    for row in groups:
        units = str(row.units) if row.repeats == 1 else f"{row.repeats}x{row.units}"
        aligned = {None: "", True: "yes", False: "no"}[row.aligned]
        name = row.name.removesuffix(f":{row.kind}")
        rows.append((name, row.kind, units, aligned, count(row.macs_per_unit), count(row.params_per_unit)))
    return text_table(titles, rows, left=2)
