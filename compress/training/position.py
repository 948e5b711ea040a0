"""How far a training has come, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Position:
    """How far a run has come; together with the tensors it decides everything that follows.

    Attributes:
        epoch: epochs finished.
        batch: batches finished within the current epoch.
        update: optimiser updates so far, the time of the learning-rate schedule.
        loss_sum: sum of the batches' losses within the current epoch.
        seconds: wall clock used, summed over resumes.
        history: one event per epoch.
        best: best value of the task's main metric on the test data so far, None before the first.
        best_epoch: finished epochs when it was reached.
        stopped_by: "epochs", "minutes", "patience" or "step" (by its own judgement) once the run is over, else None.
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    stopped_by: str | None = None


@dataclass(frozen=True)
class FitResult:
    """What a training run did.

    Attributes:
        epochs_run: whole epochs, over all resumes.
        seconds: wall clock, over all resumes.
        history: one event per epoch: epoch, update, lr, loss, and where it was evaluated the task's metrics (its loss
            as test_loss).
        stopped_by: "epochs", "minutes", "patience" or "step".
        best_epoch: the epoch whose weights were kept with `keep: best`, else None.
        metrics: the task's on the test data, of the weights that the model ended with; None where these were not
            evaluated at the end of an epoch of this process, or have batch norms that were estimated anew since.
    """

    epochs_run: int
    seconds: float
    history: list[dict[str, Any]]
    stopped_by: str
    best_epoch: int | None
    metrics: dict[str, float | None] | None = None
