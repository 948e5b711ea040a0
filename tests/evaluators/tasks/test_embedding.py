from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_hit_rate

from compress.core.errors import InputError
from compress.testing.tasks import check_task
from evaluators.datasets.batch import Batch
from evaluators.tasks import embedding
from evaluators.tasks.embedding import EmbeddingConfig, contrastive, recalls


def cloud(count: int, classes: int, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + 1.5 * torch.randn(count, width, generator=generator), labels


def test_it_is_a_task() -> None:
    points, labels = cloud(24, 4)
    scale = torch.ones((), requires_grad=True)
    task = EmbeddingConfig(width=6).bind(4, (1, 8, 8))
    check_task(task, Batch(points, labels), lambda batch: scale * batch.inputs)


@pytest.mark.parametrize("rows", [1024, 7])
def test_recall_is_that_of_torchmetrics_and_of_a_direct_count(rows: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(embedding, "ROWS", rows)
    points, labels = cloud(60, 12)
    labels[0] = 99  # alone in its class: it looks for nothing
    found = recalls(points, labels, (1, 5))
    assert found is not None and 0.1 < found[0] < found[1] < 1
    cosines = F.cosine_similarity(points[:, None], points[None], dim=2)
    for rank, share in zip((1, 5), found, strict=True):
        theirs, direct = [], []
        for query in range(1, 60):
            others = torch.arange(60) != query
            alike = (labels == labels[query])[others]
            theirs.append(float(retrieval_hit_rate(cosines[query][others], alike, top_k=rank)))
            ordered = sorted(zip(cosines[query][others].tolist(), alike.tolist(), strict=True), reverse=True)
            direct.append(any(same for _, same in ordered[:rank]))
        assert share == pytest.approx(sum(theirs) / 59) == pytest.approx(sum(direct) / 59)


def test_the_loss_is_the_published_one() -> None:
    points, labels = cloud(9, 4)
    unit = points / points.norm(dim=1, keepdim=True)
    expected = []
    for query in range(9):
        others = [each for each in range(9) if each != query]
        whole = torch.stack([(unit[query] @ unit[each] / 0.1).exp() for each in others]).sum()
        alike = [each for each in others if labels[each] == labels[query]]
        expected.append(-sum(((unit[query] @ unit[each] / 0.1).exp() / whole).log() for each in alike) / len(alike))
    assert torch.allclose(contrastive(points, labels, 0.1), torch.stack(expected), rtol=1e-4)


def test_without_two_of_one_class_nothing_is_learnt_and_nothing_is_told() -> None:
    task = EmbeddingConfig().bind(4, (1, 8, 8))
    points = torch.randn(4, 3, requires_grad=True)
    batch = Batch(points, torch.arange(4))
    loss = task.loss(points, batch)
    loss.backward()
    assert loss == 0 and points.grad is not None and not points.grad.any()
    meter = task.meter()
    meter.update(points.detach(), batch)
    assert meter.compute() == {"recall1": None, "recall5": None, "loss": None}


def test_what_does_not_fit_is_one_sentence() -> None:
    task = EmbeddingConfig().bind(4, (1, 8, 8))
    with pytest.raises(InputError, match=r"it returns \(2, 3, 4, 4\); task embedding needs"):
        task.tensor(torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="needs class numbers"):
        task.loss(torch.zeros(2, 3), Batch(0, torch.zeros(2)))
