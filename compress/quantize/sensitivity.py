"""Which layers do not stand integers: found one by one, and left float until the rest is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.core.progress import track
from compress.quantize.float_file import FloatFile
from compress.quantize.judge import Judgement, drop, judge
from compress.quantize.writer import COMPUTING, Way, write
from evaluators.datasets import Loader
from evaluators.tasks import Task


@dataclass(frozen=True)
class Sensitive:
    """A layer alone in integers: the mean square error of the outputs that it makes, over their mean square.

    Of a task without a tensor of outputs it is what the main metric loses.
    """

    node: str
    name: str
    error: float


def scan(
    way: Way, source: FloatFile, found: Any, left: Sequence[str], images: Loader, task: Task, folder: Path
) -> list[Sensitive]:
    """Return the nodes that `way` makes integers, each tried alone, those with the largest error first.

    Args:
        way: how layers are written.
        source: the float file.
        found: ranges of a static way.
        left: nodes that stay float anyway.
        images: few are enough, since errors of outputs say more than right and wrong answers.
        task: of the model.
        folder: for files, gone afterwards.
    """
    names = {layer.node: layer.name for layer in source.layers}
    constant = {each.name for each in source.model.graph.initializer}
    nodes = [
        node.name
        for node in source.model.graph.node
        if node.op_type in COMPUTING
        and node.op_type in way.operators
        and node.name not in left
        # a dynamic way makes integers of products with weights alone
        and (way.method == "static" or any(each in constant for each in node.input))
    ]
    reference, file = judge(source.path, images, task), folder / "alone.onnx"
    errors = []
    for node in track(nodes, "sensitivity"):
        write(way, source, file, found, only=[node])
        judged = judge(file, images, task)
        error = judged.error(reference)
        errors.append(Sensitive(node, names.get(node, node), drop(task, reference, judged) if error is None else error))
    file.unlink(missing_ok=True)
    return sorted(errors, key=lambda each: each.error, reverse=True)


def least_left(
    sensitive: Sequence[Sensitive], judged: Callable[[list[str]], Judgement], good: Callable[[Judgement], bool]
) -> list[str] | None:
    """Return the shortest list of the most sensitive nodes that, left float, make the rest good enough; None for none.

    By bisection: `judged` writes and judges the file with such a list, about log2 of their number times. What comes
    back was judged good itself.
    """
    nodes = [each.node for each in sensitive]
    low, high = 0, len(nodes)  # `low` is known to be too few; all float is no file of integers
    best: list[str] | None = None
    while high - low > 1:
        middle = (low + high) // 2
        if good(judged(nodes[:middle])):
            high, best = middle, nodes[:middle]
        else:
            low = middle
    return best
