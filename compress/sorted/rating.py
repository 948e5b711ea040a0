"""What the members of a family are worth: each evaluated with batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from compress.bundle import Bundle
from compress.core.batch_norm import recalibrate
from compress.core.environment import on_device
from compress.core.errors import Diverged, InputError
from compress.core.progress import hushed, say, track
from compress.picking.members import MainMetric, Member
from compress.sorted.family import INDEX, WEIGHTS, Family, digest, write_norms
from compress.sorted.network import NestedNetwork
from compress.sorted.networks import enter_statistics, statistics_of
from evaluators.cost import count_params
from evaluators.datasets import Data
from evaluators.datasets.kept import kept
from evaluators.tasks.evaluation import evaluate
from spaces.architecture import Architecture

BATCHES = 20
"""Of training images, from which the statistics of a member are estimated (SortedNet's specification: about 20)."""


def make_family(
    folder: Path,
    nested: NestedNetwork,
    bundle: Bundle,
    archs: Sequence[Architecture],
    data: Data,
    device: str = "cpu",
    batches: int = BATCHES,
) -> Family:
    """Evaluate sub-networks of trained shared weights, and write them to `folder` as a family.

    Args:
        folder: family/ of the run; what of another family is there is replaced.
        nested: the trained network with all sub-networks in it.
        bundle: its largest sub-network, the full network, with the trained weights in the order of `nested`; its batch
            norms get the statistics that were estimated for it.
        archs: which sub-networks; the largest has to be among them.
        data: the training images give the batch-norm statistics, the test images the metrics. A member is chosen by
            its metric on the test images, so of many members the chosen one's is a little better than on other images.
        device: where members run.
        batches: of training images, for the statistics.

    Raises:
        InputError: the largest sub-network is not the full network or not among `archs`.
    """
    space, task, whole = nested.space, nested.task, nested.full
    found = [space.check(arch) for arch in archs]
    if whole not in found or space.cost(whole, task)["params"] != count_params(bundle.model)[0]:
        raise InputError("members: the full network is not among them; widths have to offer 1.0")
    rated = rate(nested, found, data, device, batches)
    enter_statistics(bundle.model, rated[found.index(whole)][1], "the statistics of the full network")
    (folder / INDEX).unlink(missing_ok=True)
    bundle.save(folder / WEIGHTS)
    write_norms(folder, [norms for _, norms in rated])
    main = task.main_metric
    family = Family(
        folder=folder,
        space=space.name,
        options=space.config.model_dump(mode="json", exclude={"model"}, exclude_defaults=True),
        main=MainMetric(task.name, main.name, main.direction),
        members=tuple(replace(member, full=member.arch == whole) for member, _ in rated),
        weights=digest(folder),
    )
    family.save()
    return family


def rate(
    nested: NestedNetwork, archs: Sequence[Architecture], data: Data, device: str = "cpu", batches: int = BATCHES
) -> list[tuple[Member, dict[str, Tensor]]]:
    """Return each sub-network with its costs and the task's metrics on the test images, and its statistics.

    Each is cut out and its batch norms are estimated anew on the same `batches` of training images; the shared weights
    and their own statistics stay as they are. A member whose outputs are not finite counts as the worst.
    """
    assert data.train is not None and data.test is not None
    ready = replace(data, train=kept(data.train, device, batches), test=kept(data.test, device))
    return [_rated(nested, arch, ready, device, batches) for arch in track(archs, "evaluating members")]


def _rated(
    nested: NestedNetwork, arch: Architecture, data: Data, device: str, batches: int
) -> tuple[Member, dict[str, Tensor]]:
    assert data.train is not None and data.test is not None
    task = data.task
    model = nested.extract(arch).eval()
    with on_device(model, device), hushed():
        try:
            recalibrate(model, data.train.epoch(0), batches, device, task.forward)
            metrics = evaluate(model, data.test, task, device)
        except Diverged as error:
            say(f"{error}; this member counts as {task.main_metric.name} {task.main_metric.worst:g}")
            metrics = {metric.name: metric.worst for metric in task.metrics}
    norms = {name: buffer.detach().cpu().clone() for name, buffer in statistics_of(model).items()}
    cost = nested.space.cost(arch, task)
    return Member(arch, cost["params"], cost["macs"], metrics), norms
