"""What pruning relies on in a criterion."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from compress.core.errors import InputError
from compress.criteria import weight_criteria
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData, UnitCriterion
from compress.graph.build import build_graph
from evaluators.datasets.batch import Batch

_SHAPES = ((6, 5), (8, 3, 3, 3))


def check_weight_criterion(name: str) -> None:
    """Score and mask random weights by the criterion for single weights called `name`.

    Raises:
        AssertionError: scores are not one finite, non-negative number a weight, change the weight, or differ from one
            time to the next; or the masks remove another number of weights than asked.
    """
    criterion = weight_criteria.get(name)()
    weights = [torch.randn(shape, generator=_generator()) for shape in _SHAPES]
    for weight in weights:
        before = weight.clone()
        scores, again = (criterion.scores(weight, _generator()) for _ in range(2))
        assert torch.equal(weight, before), f"criterion {name} changes the weights that it scores"
        assert scores.shape == weight.shape, f"criterion {name} gives {tuple(scores.shape)} for {tuple(weight.shape)}"
        assert bool(torch.isfinite(scores).all()), f"criterion {name} gives scores that are not finite"
        assert bool((scores >= 0).all()), f"criterion {name} gives scores below 0"
        assert torch.equal(scores, again), f"criterion {name} gives other scores with the same generator"
    total = sum(weight.numel() for weight in weights)
    for remove in (0, 1, total // 3, total - 1):
        masks = criterion.keep(weights, remove, _generator())
        fits = [mask.shape == weight.shape and mask.dtype == torch.bool for mask, weight in zip(masks, weights)]  # noqa: B905
        assert len(masks) == len(weights) and all(fits), f"criterion {name} gives masks that do not fit the weights"
        removed = total - sum(int(mask.sum()) for mask in masks)
        assert removed == remove, f"criterion {name} removes {removed} weights where {remove} are asked"


def check_unit_criterion(criterion: str | UnitCriterion) -> None:
    """Score the channels of a small network by a criterion for units: one with its options, or a name.

    Raises:
        AssertionError: a group has not one finite score a unit, the model was changed, or scores differ from one time
            to the next.
    """
    name = criterion if isinstance(criterion, str) else type(criterion).__name__
    model = _network()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        scores, again = _scores(model, criterion), _scores(model, criterion)
    except InputError as error:
        raise AssertionError(str(error)) from error
    same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert same and model.training, f"criterion {name} changes the model that it scores"
    assert all(each.grad is None for each in model.parameters()), f"criterion {name} leaves gradients behind"
    graph = build_graph(model.eval(), _images(1))
    for group in graph.groups:
        score = scores.get(group.name)
        assert score is not None, f"criterion {name}: no scores for {group}"
        assert torch.equal(score, again[group.name]), f"criterion {name} gives other scores with the same generator"


def _scores(model: nn.Module, criterion: str | UnitCriterion) -> dict[str, Tensor]:
    graph = build_graph(model, _images(1))
    batches = [Batch(_images(16, seed), torch.arange(16) % 5) for seed in range(3)]
    data = ScoringData(graph, batches=lambda: iter(batches), generator=_generator())
    return score_units(model, graph, criterion, data)[1]


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        body = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12)]
        return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


def _images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=_generator(seed))


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)
