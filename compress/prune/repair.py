"""What can be put right once units were removed, before any training: compensation, else new batch-norm statistics.

Compensation is kept only where it helps on training images that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from compress.core.batch_norm import norm_layers, recalibrate
from compress.core.environment import on_device
from compress.core.modes import evaluating
from compress.core.progress import say
from compress.core.tensors import tensors_in
from compress.graph.apply import apply
from compress.graph.plan import Plan
from compress.prune.compensation.compensate import Compensation, compensated
from compress.prune.kinds import Details, Surroundings
from evaluators.datasets import Batch, Loader
from evaluators.datasets.holdout import unaugmented
from evaluators.tasks import Task

IMAGES, HELD_OUT = 1024, 512
VALUES = 2**25
"""Most values in all calibration images together: larger images have more positions to fit to, so fewer will do."""


def renew_norms(model: nn.Module, around: Surroundings, batches: int) -> None:
    """Estimate the batch norms of a changed model anew, on so many training batches, where there are both."""
    if around.data is not None and around.data.train is not None and norm_layers(model):
        with on_device(model, around.device):
            recalibrate(model, around.data.train.epoch(0), batches, around.device, around.data.task.forward)


def repaired(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    around: Surroundings,
    *,
    bn_batches: int,
    held: Collection[str] = (),
) -> tuple[nn.Module, Details]:
    """Return the pruned model compensated, or with its batch norms re-estimated where that is nearer to the dense one.

    Args:
        small: `apply(plan, dense)`.
        dense: the model before; it stays as it is.
        plan: what made the one of the other.
        around: data and device.
        bn_batches: training batches to re-estimate batch norms on.
        held: names of weights that masks hold at zero.

    Returns:
        The model and, where there is data, `compensation` for its details.
    """
    data = around.data
    if data is None or data.train is None:
        return small, {}
    if not data.task.gives_tensor:  # nothing to judge by
        renew_norms(small, around, bn_batches)
        why = f"task {data.task.name} gives no tensor that it could be judged by"
        return small, {"notes": [f"compensation is left out, batch norms are estimated anew: {why}"]}
    fitted, judged = _images(data.train)
    plain = apply(plan, dense).eval()
    renew_norms(plain, around, bn_batches)
    with on_device(small, around.device), on_device(dense, around.device), on_device(plain, around.device):
        done = compensated(
            small, dense, plan, lambda: fitted, data.task, device=around.device, seed=around.seed, held=held
        )
        errors = {
            name: output_error(model, dense, judged, data.task, around.device)
            for name, model in (("plain", plain), ("compensated", small))
        }
    helped = bool(done.refits) and errors["compensated"] < errors["plain"]
    details = _told(done, errors, helped, sum(map(len, fitted)), sum(map(len, judged)))
    say(details["notes"][0])
    return (small if helped else plain), details


def output_error(small: nn.Module, dense: nn.Module, batches: Sequence[Batch], task: Task, device: str) -> float:
    """Return the mean square of the difference between the outputs of two models, over the variance of `dense`'s."""
    missed, values = 0.0, []
    with evaluating(small), evaluating(dense), torch.no_grad():
        for batch in batches:
            ours, theirs = (
                task.tensor(task.forward(model, batch.to(device, copy=True))).double() for model in (small, dense)
            )
            missed += float((ours - theirs).square().sum())
            values.append(torch.stack([theirs.sum(), theirs.square().sum(), theirs.new_tensor(theirs.numel())]).cpu())
    total, squares, count = torch.stack(values).sum(0).tolist()
    variance = squares / count - (total / count) ** 2
    return float(missed / count / max(variance, 1e-30))


def _images(train: Loader) -> tuple[list[Batch], list[Batch]]:
    """Return training batches to fit to, and others to judge by: of what one epoch has, a third at most.

    Not augmented, as what the model will see: fitted to crops moved by some pixels, ResNet-56 at a third of its time
    has 1.1 to 1.7 points less.

    Of two batches one each, of a single one a half each.
    """
    fitted: list[Batch] = []
    judged: list[Batch] = []
    total = len(train)
    batches: Iterator[Batch] = unaugmented(train).epoch(0)
    for number, batch in enumerate(batches):
        seen = sum(map(len, fitted))
        values = sum(each.numel() for each in tensors_in(batch.inputs)) / len(batch)
        enough = seen >= IMAGES or seen * values >= VALUES or number >= max(1, total - total // 3)
        if not enough:
            fitted.append(batch)
        else:
            judged.append(batch)
            if sum(map(len, judged)) >= min(HELD_OUT, seen):
                break
    if not judged and len(fitted) > 1:
        judged = [fitted.pop()]
    elif not judged:
        whole = fitted[0]
        rest = len(whole) - max(1, len(whole) // 2)
        fitted, judged = [whole.part(0, max(1, rest))], [whole.part(rest, len(whole))]
    return fitted, judged


def _told(done: Compensation, errors: dict[str, float], helped: bool, fitted: int, judged: int) -> Details:
    """Return what details.json says of it."""
    before, after = errors["plain"], errors["compensated"]
    figures = f"output error on {judged:,} other training images {before:.3g} without, {after:.3g} with it"
    if helped:
        layers = f"{len(done.refits)} layer{'s' * (len(done.refits) != 1)}"
        note = f"compensation refitted {layers} on {fitted:,} training images: {figures}"
    elif done.refits:
        note = f"compensation did not help and is left out: {figures}"
    else:
        note = "compensation found nothing to refit"
    rows: list[dict[str, Any]] = [asdict(refit) for refit in done.refits]
    left = [{"layer": layer, "reason": f"not compensated: {reason}"} for layer, reason in done.left.items()]
    return {
        "compensation": {
            "kept": helped,
            "images": fitted,
            "held_out": judged,
            "error": errors,
            "layers": rows,
            "left": left,
        },
        "notes": [note],
    }
