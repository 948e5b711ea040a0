"""Top-1, top-5 and loss of a model, or of anything that maps images to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.core.batch_norm import enough_values
from compress.core.errors import CompressError, Diverged, InputError
from compress.core.modes import evaluating
from compress.core.progress import track
from evaluators.datasets.loaders import placed

if TYPE_CHECKING:
    from evaluators.datasets import Loader

TOP5_FROM = 6  # with five classes or fewer, top-5 is always right


def evaluate(
    model: Callable[[Tensor], Any], loader: Loader, device: str | torch.device = "cpu"
) -> dict[str, float | None]:
    """Return `top1` and `top5` (0-100; top5 None below six classes) and the mean cross-entropy `loss`.

    `model` is a module (evaluated in eval mode on `device`, then put back in its mode) or any callable from images
    float32 (N, C, H, W) to logits (N, classes), tensor or ndarray, such as an ONNX session; of several outputs the
    first counts. It gets images of its own, which it may change.
    Raises Diverged when the logits are not finite, InputError when a label has no logit or the output is no logits.
    """
    loader = placed(loader, device)
    total, top1, top5, loss = 0, 0, 0, 0.0
    classes = 0
    modes = evaluating(model) if isinstance(model, nn.Module) else nullcontext()
    with torch.no_grad(), modes, enough_values("data.eval_batch_size"):
        for images, labels in track(loader.batches(), "evaluating", total=-(-loader.num_samples // loader.batch_size)):
            logits = logits_of(model(images.to(device, copy=True))).float().cpu()
            labels = labels.cpu()
            classes = _check(logits, labels)
            ranked = logits.topk(min(5, classes), dim=1).indices == labels.unsqueeze(1)
            top1 += int(ranked[:, 0].sum())
            top5 += int(ranked.sum())
            loss += float(F.cross_entropy(logits, labels, reduction="none").double().sum())
            total += len(labels)
    if total == 0:
        raise CompressError("there are no images to evaluate on")
    return {
        "top1": 100 * top1 / total,
        "top5": 100 * top5 / total if classes >= TOP5_FROM else None,
        "loss": loss / total,
    }


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a model gave: a tensor or ndarray, or the first of several (a head and auxiliary ones).

    Raises InputError for anything else, such as a dict.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Tensor | np.ndarray):
        return torch.as_tensor(output)
    keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise InputError(
        f"model: it returns a {type(output).__name__}{keys}; training and evaluation need logits (N, classes), "
        "or a tuple that begins with them"
    )


def _check(logits: Tensor, labels: Tensor) -> int:
    """Return the number of classes of logits (N, classes) that fit the labels (N,)."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise CompressError(f"the model returned {tuple(logits.shape)} for {len(labels)} images; logits are needed")
    if int(labels.max()) >= logits.shape[1]:
        raise InputError(f"data: an image has the label {int(labels.max())}, the model has {logits.shape[1]} logits")
    if not bool(torch.isfinite(logits).all()):
        raise Diverged("the model's logits are NaN or infinite: its training diverged or its weights are damaged")
    return logits.shape[1]
