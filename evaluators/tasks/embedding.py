"""Embedding: points on a sphere, near for images of one class and far for others, so that images find their like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from compress.core.errors import Diverged, InputError
from evaluators.datasets.batch import Batch
from evaluators.tasks.task import Meter, Metric, Shape, Task, TaskConfig, tasks

ROWS = 1024
"""Samples that are compared with all others at a time: bounds what similarities take in memory."""

RECALL1 = Metric("recall1", "maximize", "recall@1", "Recall@1", "%", "points")
RECALL5 = Metric("recall5", "maximize", "recall@5", "Recall@5", "%", "points")
LOSS = Metric("loss", "minimize", "loss", "Loss", digits=4, worst=1e6)


@tasks.register("embedding")
class EmbeddingConfig(TaskConfig):
    """Images find their like: models give embeddings (N, numbers), targets are class numbers (N,).

    Retrieval is by cosine, leave-one-out: every test image looks for others of its class among all other test images.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (RECALL1, RECALL5, LOSS)
    targets: ClassVar[str | None] = "classes"
    name: Literal["embedding"] = Field("embedding", description="what the model is for")
    width: int | None = Field(
        None, ge=2, description="numbers in an embedding, for which models are built; null: the model's own"
    )
    temperature: float = Field(0.1, gt=0, description="of the supervised contrastive loss: what cosines are divided by")

    def bind(self, num_outputs: int, input_size: Shape) -> Embedding:
        """Return the task; however many classes there are, a model gives `width` numbers (0: as many as it has)."""
        return Embedding(self.width or 0, input_size, self)

    def outputs_of(self, outputs: Any) -> int | None:
        """Return how many numbers an embedding (1, numbers) has; None for anything else."""
        fits = isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == 1 and outputs.is_floating_point()
        return int(outputs.shape[1]) if fits else None


@dataclass(frozen=True)
class Embedding(Task):
    """The supervised contrastive loss, and recall of the nearest.

    This loss (Khosla et al. 2020, with NT-Xent of SimCLR as its case of one positive) because it has no weights beside
    the model's: class vectors, as ArcFace and its kin train them, would be neither pruned nor exported, and a bundle
    that is trained on would begin without them.
    """

    config: EmbeddingConfig = field(default_factory=EmbeddingConfig)

    form = "embeddings (N, numbers)"
    counted = "numbers"
    output_name = "embedding"

    def loss(self, outputs: Any, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Return the contrastive loss among the samples of the batch; 0 where no two are of one class."""
        embeddings, labels = self.tensor(outputs), _labels(batch.targets)
        terms = contrastive(embeddings, labels, self.config.temperature)
        return terms.mean() if len(terms) else 0 * embeddings.sum()

    def drawn_loss(self, outputs: Any, generator: Generator) -> Tensor:
        """Return the sum of the unit vectors' numbers with random signs: a square of what moves them, see regression.

        The contrastive loss says not how its targets are distributed; this is that of a student that imitates.
        """
        unit = F.normalize(self.tensor(outputs), dim=1)
        signs = torch.randint(0, 2, unit.shape, generator=generator).to(unit) * 2 - 1
        return (signs * unit).sum()

    def tensor(self, outputs: Any) -> Tensor:
        """Return the embeddings (N, numbers), of any length."""
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or not outputs.is_floating_point():
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise InputError(f"model: it returns {shape}; task embedding needs embeddings (N, numbers)")
        return outputs

    def meter(self) -> Meter:
        """Return what keeps all embeddings, and compares them in the end."""
        return _Meter(self)


class _Meter(Meter):
    """Recall in percent, and the contrastive loss among all samples (in training it is among those of a batch)."""

    def __init__(self, task: Embedding) -> None:
        self.task = task
        self.embeddings: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, outputs: Any, batch: Batch) -> None:
        """Take in embeddings (N, numbers)."""
        found, labels = self.task.tensor(outputs).float().cpu(), _labels(batch.targets).cpu()
        if len(found) != len(labels):
            raise InputError(f"model: it returned {len(found)} embeddings for {len(labels)} images")
        if not bool(torch.isfinite(found).all()):
            raise Diverged("the model's embeddings are NaN or infinite: its training diverged or its weights are wrong")
        self.embeddings.append(found)
        self.labels.append(labels)

    def compute(self) -> dict[str, float | None]:
        """Return the metrics; None where no two samples are of one class."""
        embeddings, labels = torch.cat(self.embeddings), torch.cat(self.labels)
        found = recalls(embeddings, labels, (1, 5))
        terms = contrastive(embeddings, labels, self.task.config.temperature)
        return {
            "recall1": None if found is None else 100 * found[0],
            "recall5": None if found is None else 100 * found[1],
            "loss": float(terms.double().mean()) if len(terms) else None,
        }


def contrastive(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss of every sample that has another of its class, (M,).

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, L_out (eq. 2): the mean over the others of its class
    of -log softmax, over all other samples, of cosine / temperature.

    Args:
        embeddings: (N, numbers), of any length.
        labels: class numbers (N,).
        temperature: what cosines are divided by.
    """
    unit = F.normalize(embeddings, dim=1)
    found = []
    for rows in torch.arange(len(unit), device=unit.device).split(ROWS):
        others = rows[:, None] != torch.arange(len(unit), device=unit.device)
        logits = (unit[rows] @ unit.T / temperature).masked_fill(~others, -torch.inf)
        alike = others & (labels[rows][:, None] == labels)
        logs = logits.log_softmax(1).masked_fill(~alike, 0.0)
        counts = alike.sum(1)
        found.append(-(logs.sum(1) / counts.clamp_min(1))[counts > 0])
    return torch.cat(found)


def recalls(embeddings: Tensor, labels: Tensor, ranks: tuple[int, ...]) -> list[float] | None:
    """Return the share of samples that have one of their class among the nearest K others, for every K of `ranks`.

    Nearest is by cosine, among all other samples. Samples that are alone in their class look for nothing and are left
    out; None where all are.
    """
    unit, most = F.normalize(embeddings, dim=1), min(max(ranks), len(embeddings) - 1)
    queries, hits = 0, [0] * len(ranks)
    for rows in torch.arange(len(unit)).split(ROWS):
        cosines = unit[rows] @ unit.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        alike = labels[rows][:, None] == labels
        sought = alike.sum(1) > 1
        nearest = alike.gather(1, cosines.topk(most, dim=1).indices)
        queries += int(sought.sum())
        for place, rank in enumerate(ranks):
            hits[place] += int((nearest[:, :rank].any(1) & sought).sum())
    return [each / queries for each in hits] if queries else None


def _labels(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        shape = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise InputError(f"data: task embedding needs class numbers (N,) as targets; got {shape}")
    return targets
