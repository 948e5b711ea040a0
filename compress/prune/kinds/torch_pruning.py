"""`prune: {kind: torch_pruning}`: torch-pruning's own pruner chooses and removes, our plan says what (extra)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from compress.bundle import Bundle
from compress.core.environment import on_device
from compress.core.errors import InputError
from compress.core.tensors import Inputs, moved
from compress.graph.apply import apply
from compress.graph.graph import Graph
from compress.graph.plan import Plan
from compress.prune.details import plan_details
from compress.prune.kinds import Details, PruneBase, Surroundings, prune_kinds
from compress.prune.narrow import shrunk
from compress.prune.peers.history import explained
from compress.prune.peers.pruner import NEED_DATA, Importance, Pruner, excluded, make_pruner, step, tables, train
from compress.prune.peers.tracing import torch_pruning
from compress.prune.repair import renew_norms, repaired
from evaluators.datasets.batch import Batch
from evaluators.tasks import Task


@prune_kinds.register("torch_pruning")
class TorchPruning(PruneBase):
    """torch-pruning's own pruner (DepGraph): what it removes becomes a plan, checked like any other."""

    kind: Literal["torch_pruning"] = Field("torch_pruning", description="torch-pruning's own pruner")
    pruner: Pruner = Field("base", description="which of its pruners; the others than base train before, see `sparse`")
    importance: Importance = Field("l2", description="how its groups are ranked; taylor and hessian need data")
    pruning_ratio: float = Field(0.5, gt=0, lt=1, description="share of the channels of every layer, or of all")
    head_pruning_ratio: float = Field(0.0, ge=0, lt=1, description="share of heads, with `prune_num_heads`")
    prune_num_heads: bool = Field(False, description="whole heads go")
    prune_head_dims: bool = Field(True, description="heads become narrower")
    global_pruning: bool = Field(False, description="channels compete across the model")
    isomorphic: bool = Field(False, description="channels compete among groups of the same structure")
    round_to: int | None = Field(None, ge=1, description="widths become multiples of this")
    max_pruning_ratio: float = Field(1.0, gt=0, le=1, description="share of its channels that a layer may lose at most")
    iterative_steps: int = Field(1, ge=1, description="steps, importance measured anew before each; nothing is trained")
    exclude: list[str] = Field([], description="globs over layers that stay whole")
    sparse_updates: int = Field(0, ge=0, description="training updates with the pruner's regulariser before")
    sparse_lr: float = Field(0.001, gt=0, description="learning rate of these (SGD)")
    calibration_batches: int = Field(4, ge=1, description="training batches for taylor and hessian")
    compensate: bool = Field(
        True, description="refit what reads removed units, on training images, to what the model had there before"
    )
    bn_batches: int = Field(
        20, ge=0, description="without compensation: training batches that batch norms are re-estimated on"
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if (self.pruner == "base") != (self.sparse_updates == 0):
            raise ValueError(
                f"pruner {self.pruner} with sparse_updates {self.sparse_updates}: base trains nothing before, and the "
                "others differ from it by that alone; allowed: base with 0, the others with at least 1"
            )
        if self.prune_num_heads != (self.head_pruning_ratio > 0):
            raise ValueError("give prune_num_heads and head_pruning_ratio together")
        if self.isomorphic and not self.global_pruning:
            raise ValueError("isomorphic is a kind of global_pruning: set that to true, too")
        return self

    def unfit(self, task: Task) -> str | None:
        """Return that the task has no loss, where one is needed."""
        if task.has_loss or not (self.sparse_updates or self.importance in NEED_DATA):
            return None
        what = "sparse_updates train" if self.sparse_updates else f"importance {self.importance} goes"
        return f"{what} by a loss, and task {task.name} has none"

    def check(self, bundle: Bundle) -> None:
        """Raise where torch-pruning cannot follow the model, a glob matches nothing, or masks would be trained over."""
        if self.sparse_updates and bundle.masks:
            raise InputError(
                f"prune.sparse_updates: {self.sparse_updates} updates would change weights that masks hold at zero; "
                "allowed after kind: weights: 0"
            )
        inputs = bundle.example_inputs()
        trial = self if self.global_pruning else self.model_copy(update={"importance": "l1"})
        pruner = trial._pruner(apply(Plan(), bundle.model), bundle.known.graph(bundle.model, inputs), inputs)
        if self.global_pruning:  # what goes depends on weights and data
            return
        for _ in range(self.iterative_steps):
            step(pruner, "l1", (), bundle.task)
        if not pruner.pruning_history():
            raise InputError(
                f"prune: torch-pruning removes nothing with pruning_ratio {self.pruning_ratio:g}, round_to "
                f"{self.round_to or 1} and what is excluded; a larger ratio, a smaller round_to or other globs let "
                "layers lose units"
            )

    def check_names(self, bundle: Bundle) -> None:
        """Raise where torch-pruning is not there, or a glob matches nothing."""
        torch_pruning()
        excluded(bundle.model, self.exclude)

    def prune(self, bundle: Bundle, around: Surroundings) -> tuple[Bundle, Details]:
        """Return the bundle without what torch-pruning removes, and the details."""
        task = bundle.task if around.data is None else around.data.task
        inputs = moved(bundle.example_inputs(), around.device)
        dense, home = bundle.model, next(bundle.model.parameters()).device
        with torch.random.fork_rng(), on_device(dense, around.device):
            torch.manual_seed(around.seed)  # of its random importance, and of dropout where it trains
            theirs = apply(Plan(), dense)
            graph = bundle.known.graph(dense, inputs)
            pruner = self._pruner(theirs, graph, inputs)
            if self.sparse_updates:
                train(pruner, self._batches(around, "sparse_updates", self.sparse_updates), task, self.sparse_lr)
                dense = _with_values(theirs, dense)
            for _ in range(self.iterative_steps):
                needed = self.importance in NEED_DATA
                batches = self._batches(around, "importance", self.calibration_batches) if needed else ()
                step(pruner, self.importance, batches, task)
            told = {"ignored_params": tables(dense, graph)}
            plan = explained(pruner.pruning_history(), dense, inputs, graph, tracing=told, pruned=theirs)
        small, details = apply(plan, dense.to(home)).eval(), plan_details(plan) | {"kind": self.kind}
        if self.compensate and around.data is not None:
            held = bundle.masks or ()
            small, repair = repaired(small, dense, plan, around, bn_batches=self.bn_batches, held=held)
            details |= {**repair, "notes": [*details["notes"], *repair.get("notes", ())]}
        else:
            renew_norms(small, around, self.bn_batches)
        return shrunk(bundle, plan, small), details

    def _pruner(self, model: nn.Module, graph: Graph, inputs: Inputs) -> Any:
        return make_pruner(
            model,
            graph,
            inputs,
            self.pruner,
            self.importance,
            self.exclude,
            pruning_ratio=self.pruning_ratio,
            head_pruning_ratio=self.head_pruning_ratio,
            prune_num_heads=self.prune_num_heads,
            prune_head_dims=self.prune_head_dims,
            global_pruning=self.global_pruning,
            isomorphic=self.isomorphic,
            round_to=self.round_to,
            max_pruning_ratio=self.max_pruning_ratio,
            iterative_steps=self.iterative_steps,
        )

    def _batches(self, around: Surroundings, key: str, count: int) -> Iterator[Batch]:
        """Yield `count` training batches on the device; without data the setting `key` is refused."""
        if around.data is None or around.data.train is None:
            value = getattr(self, key)
            raise InputError(f"prune.{key}: {value!r} needs data, and the recipe has none (data.name: none)")
        epochs = map(around.data.train.epoch, itertools.count())
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), count):
            yield batch.to(around.device, copy=True)


def _with_values(trained: nn.Module, dense: nn.Module) -> nn.Module:
    """Return a copy of `trained`, whose parameters are as free or frozen as those of `dense`."""
    copy = apply(Plan(), trained)
    for name, parameter in dense.named_parameters():
        copy.get_parameter(name).requires_grad_(parameter.requires_grad)
    return copy
