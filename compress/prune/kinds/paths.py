"""`prune: {kind: paths}`: paths of a pre-norm transformer leave the sum of its features, or are weighed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.progress import track
from compress.graph.known import Known
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.transforms.paths import PathEnsemble, Paths, Scale, number_of_paths
from compress.transforms.pre_norm import rows_of
from compress.transforms.tokens import TokenStages
from evaluators.tasks import Task
from evaluators.tasks.evaluation import evaluate


@prune_kinds.register("paths")
class PathsConfig(PruneBase):
    """Leave the shortest paths of a pre-norm transformer out of its features, or weigh all (Path Ensemble)."""

    cannot_follow: ClassVar[Mapping[str, str]] = {
        "paths": PathEnsemble.why_no_row,
        "tokens": TokenStages.why_no_row,
    }

    kind: Literal["paths"] = Field(description="the last sum changes, the blocks stay")
    drop: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        0,
        description="shortest paths to leave out; auto: as many as one by one do not lower the main metric of the "
        "test images",
    )
    scale: Scale = Field("channel", description="learnt factors of what stays: none, one a path, or one a channel")
    separate: bool = Field(True, description="attention and MLP of a block are two paths, not one")

    def unfit(self, task: Task) -> str | None:
        """Return that the task has no metric to judge by, where one is needed."""
        if task.metrics or self.drop != "auto":
            return None
        return f"drop: auto goes by a metric, and task {task.name} has none; allowed: a number"

    def check(self, bundle: Bundle) -> None:
        """Raise where the model is no pre-norm transformer, or has not that many paths."""
        self._row(bundle)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle whose features are the sum of the paths that stay, and what each path is worth."""
        name, paths = self._row(bundle)
        rows: list[dict[str, Any]] = []
        if self.drop == "auto":
            rows = self._judged(bundle, name, paths, around)
            dropped = max(row["shortest"] for row in rows if row["kept_out"])
        else:
            dropped = self.drop
        transform = Paths(row=name, left_out=list(range(dropped)), scale=self.scale, separate=self.separate)
        model = transform.apply(bundle.model, bundle.example_inputs())
        changed = replace(bundle.transformed(transform, model), known=Known())
        notes = [
            f"{dropped} of {paths} paths are left out of the sum that goes to the head. Every block still runs, "
            "for the longer paths: MACs and latency do not fall; factors of the other paths are new parameters."
        ]
        if self.drop == "auto":
            notes.append("Their number was chosen on the test images, whose figures are a little optimistic from here.")
        return changed, {
            "kind": "paths",
            "paths": paths,
            "left_out": transform.left_out,
            "judged": rows,
            "notes": notes,
        }

    def _row(self, bundle: Bundle) -> tuple[str, int]:
        """Return the name of the last row of blocks, and its number of paths."""
        try:
            row = rows_of(bundle.model, bundle.example_inputs())[-1]
        except InputError as error:
            raise InputError(f"prune: {error}") from error
        paths = number_of_paths(len(row.blocks), self.separate)
        if self.drop != "auto" and self.drop >= paths:
            raise InputError(f"prune.drop: there are {paths} paths; got {self.drop}; allowed 0 to {paths - 1}")
        return row.name, paths

    def _judged(self, bundle: Bundle, name: str, paths: int, around: Surroundings) -> list[dict[str, Any]]:
        """Return the main metric without the k shortest paths, k = 0, 1, ..., up to the first that lowers it."""
        if around.data is None or around.data.test is None:
            raise InputError("prune.drop: auto needs test images; got data.name none; allowed: a number")
        task, test, main = around.data.task, around.data.test, around.data.task.main_metric
        row = next(row for row in rows_of(bundle.model, bundle.example_inputs()) if row.name == name)
        parent, _, child = name.rpartition(".")
        rows: list[dict[str, Any]] = []
        holder = bundle.model.get_submodule(parent)
        try:
            for shortest in track(range(paths), "leaving out paths"):
                inside = PathEnsemble(list(row.blocks), row.width, range(shortest), "none", self.separate)
                holder._modules[child] = inside.eval()
                with on_device(bundle.model, around.device):
                    value = main.of(evaluate(bundle.model, test, task, around.device))
                best = rows[-1]["value"] if rows else None
                fine = best is None or value == best or main.better(value, best)
                rows.append({"shortest": shortest, "value": value, "kept_out": fine})
                if not fine:
                    break
        finally:
            holder._modules[child] = row.blocks
        return rows
