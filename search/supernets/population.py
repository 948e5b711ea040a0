"""Rating all paths of a trained block toward the centre of their population (BossNAS, section 3.3).

With the augmentation of the held-out images fixed, a path is worth how near its predictions come to the mean of all
paths' target projections. The released code averages raw projections here and normalised ones in training; here they
are normalised in both, and the online network reads its own earlier blocks in both, the target network the target's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.core.batch_norm import norm_layers, recalibrate
from compress.core.modes import evaluating
from compress.core.progress import hushed, track
from evaluators.datasets.batch import Batch
from evaluators.datasets.views import views_of
from search.supernets.block_paths import Path
from search.supernets.bootstrap import Branch, bootstrap_loss

Statistics = list[tuple[_BatchNorm, Tensor, Tensor]]
"""Batch norms, each with a running mean and variance (C,)."""


@dataclass(frozen=True)
class Side:
    """One of the two networks: the blocks before, fixed on their paths, and the branch whose paths are rated."""

    before: nn.Module
    branch: Branch


@torch.no_grad()
def population_losses(
    paths: Sequence[Path],
    online: Side,
    target: Side,
    calibration: Sequence[Batch],
    held_out: Iterable[Batch],
    batches: int,
    device: str,
) -> list[float]:
    """Return the loss of each path, from -4 (all predictions are at the centre) to 4, lower being better.

    Args:
        paths: all paths of the block.
        online: the network that predicts, on `device`; weights, statistics and modes are as before afterwards.
        target: the one whose projections make up the centre, likewise.
        calibration: training batches of two views or more, which estimate each path's batch-norm statistics.
        held_out: batches of two views of the images that are judged on.
        batches: how many those are, for the progress bar.
        device: such as "cpu".
    """
    with kept_statistics(online.branch), kept_statistics(target.branch), _evaluated(online, target):
        seen = [_features(side, calibration, device) for side in (online, target)]
        statistics = [
            [known for side, features in zip((online, target), seen, strict=True)
             for known in _statistics(path, side.branch, features, device)]
            for path in paths
        ]  # fmt: skip
        sums, samples = torch.zeros(len(paths), dtype=torch.float64), 0
        for batch in track(held_out, f"rating {len(paths)} paths", total=batches):
            views = [view.to(device) for view in views_of(batch)[:2]]
            features, theirs = ([side.before(view) for view in views] for side in (online, target))
            predicted: list[list[Tensor]] = []
            centres = [torch.zeros(()).to(device), torch.zeros(()).to(device)]
            for path, known in zip(paths, statistics, strict=True):
                _put(known)
                for side in (online, target):
                    side.branch.activate(path)
                predicted.append([online.branch(view) for view in features])
                projected = [F.normalize(target.branch(view), dim=1) for view in theirs]
                centres = [centre + each for centre, each in zip(centres, projected, strict=True)]
            for place, (first, second) in enumerate(predicted):  # a cosine does not mind that centres are sums
                loss = bootstrap_loss(first, centres[1]) + bootstrap_loss(second, centres[0])
                sums[place] += len(batch) * float(loss)
            samples += len(batch)
    return [float(total) for total in sums / samples]


@torch.no_grad()
def settle(side: Side, path: Path, calibration: Sequence[Batch], device: str) -> None:
    """Fix the branch's block on a path: that runs from now on, with its own batch-norm statistics."""
    with kept_statistics(side.branch), _evaluated(side):
        known = _statistics(path, side.branch, _features(side, calibration, device), device)
    _put(known)
    side.branch.activate(path)
    side.branch.eval()


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Put the batch-norm buffers of `module` back after the block."""
    before = [
        (buffer, buffer.clone()) for layer in norm_layers(module, True) for buffer in layer.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for buffer, old in before:
            buffer.copy_(old)


@contextmanager
def _evaluated(*sides: Side) -> Iterator[None]:
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(evaluating(side.before))
            stack.enter_context(evaluating(side.branch))
        yield


def _features(side: Side, calibration: Sequence[Batch], device: str) -> list[Tensor]:
    """Return what the blocks before make of the views of the calibration images."""
    return [side.before(view.to(device)) for batch in calibration for view in views_of(batch)[:2]]


def _statistics(path: Path, branch: Branch, features: Sequence[Tensor], device: str) -> Statistics:
    """Return the statistics that `features` give to the batch norms that `path` uses."""
    branch.activate(path)
    with hushed():
        recalibrate(branch, features, len(features), device, frozen=True)  # the target is no less than the online one
    return [
        (layer, layer.running_mean.clone(), layer.running_var.clone())
        for layer in norm_layers(branch, frozen=True)
        if layer.num_batches_tracked and layer.running_mean is not None and layer.running_var is not None
    ]


def _put(known: Statistics) -> None:
    for layer, mean, variance in known:
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
