"""The structured optimal brain surgeon against brute force, and on a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.criteria.obs import Consumer, losses
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.prune.structure import Setting, plan_structure, scored_units
from compress.prune.structure_config import StructureConfig
from evaluators.datasets.batch import Batch


def problem(units: int, kernel: int, outputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight, second moments of correlated inputs, and the columns of each unit."""
    generator = torch.Generator().manual_seed(seed)
    inputs = units * kernel
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    read = torch.randn(500, inputs, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return weight, read.T @ read / 500, torch.arange(inputs).reshape(units, kernel)


def brute_force(weight: Tensor, hessian: Tensor, gone: list[int]) -> float:
    """Return the least loss without the columns `gone`, from the normal equations of those that stay."""
    stay = [place for place in range(len(hessian)) if place not in gone]
    best = weight @ hessian[:, stay] @ torch.linalg.inv(hessian[stay][:, stay])
    change = -weight.clone()
    change[:, stay] += best
    return float(((change @ hessian) * change).sum())


def test_the_score_of_a_unit_is_the_loss_that_brute_force_finds() -> None:
    weight, hessian, columns = problem(units=6, kernel=4)
    consumer = Consumer(weight, torch.linalg.inv(hessian), columns, energy=1.0)
    expected = [brute_force(weight, hessian, unit.tolist()) for unit in columns]
    assert torch.allclose(consumer.losses(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6)
    # once two units are gone: what a third adds to the loss of the two
    later = consumer.without(torch.tensor([1, 4])).losses()
    two = columns[[1, 4]].flatten().tolist()
    base = brute_force(weight, hessian, two)
    more = [brute_force(weight, hessian, [*two, *columns[unit].tolist()]) - base for unit in (0, 2, 3, 5)]
    assert torch.allclose(later, torch.tensor(more, dtype=torch.float64), rtol=1e-6)


def test_one_of_two_equal_units_is_free_and_the_other_then_dear() -> None:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    read[:, 3] = read[:, 1]
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    hessian = read.T @ read / 400
    energy = float(((weight @ hessian) * weight).sum())
    damped = hessian + 1e-2 * hessian.diagonal().mean() * torch.eye(5)
    found = losses([Consumer(weight, torch.linalg.inv(damped), torch.arange(5)[:, None], energy)], 5)
    twins = found[[1, 3]].sort().values
    assert twins[0] == found.min()
    assert twins[0] <= 1e-2
    assert twins[1] > 10 * twins[0]


class Twins(nn.Module):
    """Two convolutions; in the first, units 2 and 5 are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.first.weight.data[5] = self.first.weight.data[2]
        self.first.bias.data[5] = self.first.bias.data[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x)))).mean((2, 3))


def test_the_criterion_removes_a_unit_that_says_what_another_does() -> None:
    torch.manual_seed(0)
    model = Twins().eval()
    batch = Batch(torch.randn(8, 3, 12, 12), torch.zeros(8))
    graph = build_graph(model, batch.inputs[:1])
    config = StructureConfig(kind="structure", criterion="obs", ratio=0.12, align=1, options={})
    setting = Setting(batches=lambda: iter([batch]))
    _, scores = scored_units(model, graph, config, setting)
    (score,) = scores.values()
    assert score.argmin() in (2, 5)
    plan = plan_structure(model, graph, batch.inputs[:1], config, setting)
    small = apply(plan, model)
    assert len(small.first.weight) == 7
