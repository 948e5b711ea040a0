"""Peak memory of one training update: full fine-tuning, ladder side-tuning and a linear probe of one backbone.

    python benchmarks/ladder_memory.py [MODEL...] [--image-size 224] [--batch 16] [--reduction 4]
    python benchmarks/ladder_memory.py --accuracy runs/ladder_swin_digits/stages/02-prune [--epochs 6] [--seeds 3]

Per method: parameters that learn, bytes that the forward pass keeps for the gradients, and the peak of all tensors
alive during the second update (weights, gradients, AdamW's state, activations, temporary results), each with its share
of full fine-tuning. All tensors are counted by their storages while the update runs, so the figures do not depend on
how an allocator rounds. With `--accuracy`, what each method makes of a pruned bundle on scikit-learn's digits instead:
top-1 by seed, each at the best of three learning rates.
"""

from __future__ import annotations

import argparse
import copy
import weakref
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.bundle import Bundle
from compress.graph.known import Known
from compress.prune.side import side_plan
from compress.prune.structure import Setting
from compress.prune.structure_config import StructureConfig
from compress.training.config import TrainConfig
from compress.training.fit import fit
from compress.transforms.ladder import LadderTransform
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks.evaluation import evaluate

MODELS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet50")
MIB = 2**20


class Alive(TorchDispatchMode):
    """Bytes of all storages that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that one forward pass keeps for the gradients, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(images)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the most bytes alive during the second of two updates by AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, foreach=False)
    with Alive() as alive:
        for tensor in [*model.parameters(), *model.buffers(), images, labels]:
            alive.add(tensor.detach())
        for _ in range(2):
            alive.peak = alive.now
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    peak: int = alive.peak
    return peak


def full(model: nn.Module, example: Tensor, reduction: int) -> nn.Module:
    """Return the model, all of which learns."""
    return copy.deepcopy(model).train()


def ladder(model: nn.Module, example: Tensor, reduction: int) -> nn.Module:
    """Return the frozen model with the side network beside it."""
    config = StructureConfig.model_validate({"kind": "structure", "criterion": "magnitude", "ratio": 0.5})
    graph = Known().graph(model, example)
    plan = side_plan(model, graph, example, reduction, config, Setting())
    return LadderTransform(plan=plan).apply(copy.deepcopy(model), example).train()


def probe(model: nn.Module, example: Tensor, reduction: int) -> nn.Module:
    """Return the frozen model whose classifier learns."""
    probed = copy.deepcopy(model).requires_grad_(False).eval()
    for parameter in probed.get_classifier().parameters():  # type: ignore[operator]
        parameter.requires_grad_(True)
    return probed


METHODS: dict[str, Callable[[nn.Module, Tensor, int], nn.Module]] = {
    "full fine-tuning": full,
    "ladder": ladder,
    "linear probe": probe,
}


def rows(name: str, side: int, batch: int, reduction: int) -> list[list[str]]:
    """Return the lines of the table for one backbone."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images, labels = torch.randn(batch, 3, side, side), torch.arange(batch) % 10
    lines: list[list[str]] = []
    whole: tuple[int, int] | None = None
    for method, make in METHODS.items():
        made = make(model, images[:1], reduction)
        learning = sum(p.numel() for p in made.parameters() if p.requires_grad)
        saved, peak = saved_bytes(made, images), peak_bytes(made, images, labels)
        whole = whole or (saved, peak)
        lines.append(
            [
                name, method, f"{learning / 1e6:.3f} M",
                f"{saved / MIB:.1f} MiB", f"{saved / whole[0]:.2f}",
                f"{peak / MIB:.1f} MiB", f"{peak / whole[1]:.2f}",
            ]
        )  # fmt: skip
    return lines


def accuracy(directory: str, epochs: int, seeds: int, reduction: int) -> list[list[str]]:
    """Return a line for each method: top-1 of a pruned bundle after so many epochs on digits, by seed."""
    bundle = Bundle.load(directory)
    size = bundle.preprocessing.input_size[1]
    config = DigitsConfig(name="digits", image_size=size, augment="none", batch_size=64)
    start = ["", "as pruned", "", f"{_top1(bundle.model, config, bundle, 0):.2f}"]
    lines = [start]
    for method, make in METHODS.items():
        best: tuple[float, float, list[float]] | None = None
        for lr in (1e-3, 3e-3, 1e-2):
            found = []
            for seed in range(seeds):
                model = make(bundle.model, bundle.example_inputs(), reduction)
                data = config.load(bundle.task.config, bundle.preprocessing.to_dict(), seed=seed)
                fit(model, data, TrainConfig(epochs=epochs, lr=lr, warmup_epochs=1, evaluate_every=0), seed=seed)
                found.append(_top1(model, config, bundle, seed))
            mean = sum(found) / seeds
            if best is None or mean > best[0]:
                best = (mean, lr, found)
        assert best is not None
        lines.append(["", method, f"lr {best[1]:g}", f"{best[0]:.2f}", " ".join(f"{each:.2f}" for each in best[2])])
    return lines


def _top1(model: nn.Module, config: DigitsConfig, bundle: Bundle, seed: int) -> float:
    data = config.load(bundle.task.config, bundle.preprocessing.to_dict(), seed=seed)
    assert data.test is not None
    return float(evaluate(model, data.test, data.task, "cpu")["top1"] or 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--reduction", type=int, default=4)
    parser.add_argument("--accuracy", help="a pruned bundle for digits")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.accuracy:
        for line in accuracy(given.accuracy, given.epochs, given.seeds, given.reduction):
            print("  ".join(line).strip())
        return
    head = ["backbone", "method", "learns", "saved activations", "of full", "peak of an update", "of full"]
    lines = [row for name in given.models for row in rows(name, given.image_size, given.batch, given.reduction)]
    wide = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]
    for row in [head, *lines]:
        print("  ".join(cell.ljust(size) for cell, size in zip(row, wide, strict=True)).rstrip())


if __name__ == "__main__":
    main()
