"""The sensitivity scan: narrows in place what it says, and leaves the model untouched."""

from __future__ import annotations

import pytest
import timm
import torch

from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import make_plan
from compress.graph.select import strongest
from compress.prune.sensitivity import scan, switched_off

CASES = {
    "resnet18": ({"zero_init_last": False}, 64),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "mobilenetv3_small_050": ({}, 64),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    torch.manual_seed(0)
    options, size = CASES[request.param]
    model = timm.create_model(request.param, num_classes=10, **options).eval()
    image = torch.randn(1, 3, size, size)
    graph, scores = score_units(
        model, build := checked(model, build_graph(model, image), image), "magnitude", ScoringData(build)
    )
    return model, image, graph, scores


def test_switching_units_off_equals_removing_them(case):
    model, image, graph, scores = case
    for group in graph.groups:
        if any("norm" in part.layer.rpartition(".")[2] for part in group.slices):
            continue  # a layer norm over the stream counts its channels
        kept = strongest(scores[group.name], max(1, group.size // 2))
        with torch.no_grad():
            small = apply(make_plan(model, graph, {group.name: kept}), model)
            with switched_off(model, group, kept):
                torch.testing.assert_close(model(image), small(image), rtol=1e-4, atol=1e-5)


def test_a_scan_has_a_row_per_group_and_ratio_and_restores_every_weight(case):
    model, image, graph, scores = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    some = {name: scores[name] for name in list(scores)[:2]}
    with torch.no_grad():
        dense = model(image)

    def closeness(narrowed) -> float:
        with torch.no_grad():
            return -float((narrowed(image) - dense).norm())

    rows = scan(model, graph, some, closeness)
    assert [row.group for row in rows] == [name for name in some for _ in range(3)]
    assert all(row.drop == -row.metric and row.drop > 0 for row in rows)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_come_back_when_the_evaluation_fails(case):
    model, _, graph, scores = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail(narrowed) -> float:
        if any(not torch.equal(before[name], tensor) for name, tensor in narrowed.state_dict().items()):
            raise RuntimeError("out of memory")
        return 0.0

    with pytest.raises(RuntimeError, match="out of memory"):
        scan(model, graph, scores, fail)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
