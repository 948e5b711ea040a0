"""The compiled cost formulas equal those of the graph, and those equal what the modules really cost."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.ops import DeformConv2d

from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.cost_model import CostModel
from compress.graph.plan import make_plan
from evaluators.cost import count_macs

MODELS = {"densenet121": 64, "regnety_002": 64, "swin_tiny_patch4_window7_224": 224}


@pytest.fixture(scope="module", params=MODELS)
def graph(request):
    model = timm.create_model(request.param, num_classes=10).eval()
    return build_graph(model, torch.randn(1, 3, MODELS[request.param], MODELS[request.param]))


@pytest.mark.parametrize("counted", ["macs", "params"])
def test_costs_of_many_choices_equal_the_graphs(graph, counted):
    chosen = random.Random(0)
    rows = [{group.name: chosen.randint(1, group.size) for group in graph.groups} for _ in range(5)]
    model = CostModel(graph, counted)
    array = np.array([[row[name] for name in model.names] for row in rows])
    expected = [getattr(graph, counted)(row) for row in rows]
    assert model.totals(array).tolist() == expected
    assert model.total() == model.dense == getattr(graph, counted)()
    assert model.fractions(array) == pytest.approx([cost / model.dense for cost in expected])


@pytest.mark.parametrize("counted", ["macs", "params"])
def test_savings_are_those_of_one_unit_less(graph, counted):
    cost = getattr(graph, counted)
    saved = CostModel(graph, counted).savings()
    for group in graph.groups[:: max(1, len(graph.groups) // 8)]:
        assert saved[group.name] == cost() - cost({group.name: group.size - 1})


def test_dropped_blocks_and_groups_that_stay_whole_are_counted(graph):
    part = replace(graph, groups=graph.groups[1::2])
    dropped = graph.blocks[:1]
    widths = {group.name: 1 for group in part.groups}
    model = CostModel(part, "macs", dropped, dense=1000)
    assert model.total(widths) == graph.macs(widths, dropped)
    assert model.fractions(np.array([[1] * len(part.groups)])) == pytest.approx([graph.macs(widths, dropped) / 1000])


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc1 = torch.nn.LSTM(16, 12, batch_first=True, bidirectional=True), torch.nn.Linear(24, 32)
        self.fc2 = torch.nn.Linear(32, 5)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.lstm(x)[0].mean(1))))


class Products(torch.nn.Module):
    """Products that are no matrix products: a bilinear layer, a deformed convolution, lengths of weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.offset = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 18, 3, padding=1)
        self.deformed = DeformConv2d(8, 12, 3, padding=1)
        self.norm = spectral_norm(torch.nn.Linear(12, 10))
        self.both, self.head = torch.nn.Bilinear(10, 12, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        x = self.conv(x)
        x = self.deformed(x, self.offset(x)).mean((2, 3))
        return self.head(self.both(self.norm(x), x))


@pytest.mark.parametrize(
    ("model", "shape"), [(Recurrent(), (1, 9, 16)), (Products(), (1, 3, 6, 6))], ids=["recurrent", "products"]
)
def test_macs_of_all_products_are_those_that_are_counted(model, shape):
    model, x = model.eval(), torch.randn(shape)
    graph = build_graph(model, x)
    assert graph.macs() == count_macs(model, x)
    small = apply(make_plan(model, graph, {group.name: torch.arange(group.size // 2) for group in graph.groups}), model)
    narrow = graph.macs({group.name: group.size // 2 for group in graph.groups})
    assert narrow == count_macs(small, x) < graph.macs()
