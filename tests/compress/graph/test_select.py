"""Choosing widths: targets are met, widths are allowed, the weakest units go."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import timm
import torch

from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData
from compress.graph.build import build_graph
from compress.graph.cost_model import CostModel
from compress.graph.select import FINE, Selector
from compress.graph.widths import WidthRules, allowed_widths

SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}
MODELS = {
    "resnet18": ("resnet18", {}, 64),
    "mobilenet": ("mobilenetv2_100", {}, 64),
    "densenet": ("densenet121", {}, 64),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 32),
}


@pytest.fixture(scope="module")
def scored():
    cache = {}

    def get(name: str):
        if name not in cache:
            torch.manual_seed(0)
            architecture, options, size = MODELS[name]
            model = timm.create_model(architecture, num_classes=10, **options).eval()
            graph = build_graph(model, torch.randn(1, 3, size, size))
            cache[name] = score_units(model, graph, "dimap", ScoringData(graph))
        return cache[name]

    return get


def select(scored, name, target, counted="macs", **options):
    graph, scores = scored(name)
    return graph, scores, Selector(graph, scores, CostModel(graph, counted), **options).nearest(target)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("allocation", ["global", "module", "uniform"])
@pytest.mark.parametrize("align", [1, 16])
def test_macs_targets_are_met_exactly_enough(scored, name, allocation, align):
    for target in (0.7, 0.5):
        graph, _, choice = select(scored, name, target, allocation=allocation, rules=WidthRules(align))
        assert choice.achieved == pytest.approx(graph.macs(choice.widths) / graph.macs())
        assert abs(choice.achieved - target) <= (2 * FINE if align == 1 else 0.01)


@pytest.mark.parametrize("name", ["resnet18", "swin"])
def test_params_targets_are_met(scored, name):
    graph, _, choice = select(scored, name, 0.4, "params", rules=WidthRules(8))
    assert graph.params(choice.widths) / graph.params() == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_every_width_is_an_allowed_one_and_kept_units_are_the_strongest(scored, name):
    rules = WidthRules(align=16, min_fraction=0.2)
    graph, scores, choice = select(scored, name, 0.5, rules=rules)
    assert set(choice.widths) == {group.name for group in graph.groups}
    for group in graph.groups:
        kept, width = choice.kept[group.name], choice.widths[group.name]
        assert width in allowed_widths(group, rules)
        assert torch.equal(kept, kept.unique()) and len(kept) == width
        gone = torch.ones(group.size, dtype=torch.bool).index_fill_(0, kept, False)
        assert not gone.any() or scores[group.name][kept].min() >= scores[group.name][gone].max()


def test_a_global_threshold_takes_units_in_the_order_of_their_scores(scored):
    """But for the last few units that are moved one by one, all that stays outscores all that goes."""
    graph, scores, choice = select(scored, "resnet18", 0.5, rules=WidthRules(min_fraction=0.01))
    stays, goes = [], []
    for group in graph.groups:
        ordered = scores[group.name].sort(descending=True).values
        stays.append(ordered[: choice.widths[group.name]])
        goes.append(ordered[choice.widths[group.name] :])
    threshold = torch.cat(goes).sort().values[-3]
    assert (torch.cat(stays) < threshold).sum() <= 3


def test_uniform_allocation_gives_every_group_the_same_share(scored):
    graph, _, choice = select(scored, "resnet18", 0.5, allocation="uniform")
    shares = [choice.widths[group.name] / group.size for group in graph.groups]
    assert max(shares) - min(shares) < 0.02


def test_module_allocation_gives_every_kind_the_same_share(scored):
    graph, _, choice = select(scored, "swin", 0.5, allocation="module", rules=WidthRules(min_fraction=0.01))
    shares = {}
    for kind in ("channels", "mlp"):
        groups = [group for group in graph.groups if group.kind == kind]
        shares[kind] = sum(choice.widths[g.name] for g in groups) / sum(g.size for g in groups)
    assert shares["channels"] == pytest.approx(shares["mlp"], abs=0.05)


def test_equal_scores_are_decided_by_order_and_still_meet_the_target(scored):
    graph, scores = scored("resnet18")
    flat = {name: torch.ones_like(score) for name, score in scores.items()}
    selector = Selector(graph, flat, CostModel(graph))
    first, second = selector.nearest(0.5), selector.nearest(0.5)
    assert first.widths == second.widths and abs(first.achieved - 0.5) < 2 * FINE
    assert all(torch.equal(kept, torch.arange(len(kept))) for kept in first.kept.values())


def test_groups_without_scores_stay_whole(scored):
    graph, scores = scored("resnet18")
    part = {name: score for name, score in scores.items() if name.startswith("layer3")}
    choice = Selector(graph, part, CostModel(graph)).nearest(0.8)
    assert set(choice.kept) == set(part)
    assert all(choice.widths[g.name] == g.size for g in graph.groups if g.name not in part)
    assert choice.achieved == pytest.approx(0.8, abs=0.01)


def test_tied_groups_keep_the_same_fraction(scored):
    graph, scores = scored("swin")
    tie = tuple(g.name for g in graph.groups if g.kind == "heads" and g.size == 4)
    uneven = tuple(g.name for g in graph.groups if g.kind == "mlp")[1:3]
    tied = replace(graph, ties=(tie, uneven))
    sizes = {group.name: group.size for group in graph.groups}
    assert sizes[uneven[0]] != sizes[uneven[1]]
    for target in (0.8, 0.5, 0.3):
        widths = Selector(tied, scores, CostModel(tied), rules=WidthRules(8)).nearest(target).widths
        for names in (tie, uneven):
            assert len({widths[name] / sizes[name] for name in names}) == 1


def test_removing_a_share_counts_units_of_the_dense_model(scored):
    graph, scores = scored("resnet18")
    full = {group.name: 2 * group.size for group in graph.groups}
    total = sum(group.size for group in graph.groups)
    selector = Selector(graph, scores, CostModel(graph), rules=WidthRules(min_fraction=0.001))
    assert sum(selector.removing(0.25).widths.values()) == total - round(total * 0.25)
    later = Selector(graph, scores, CostModel(graph), rules=WidthRules(min_fraction=0.001, full=full))
    assert sum(later.removing(0.5).widths.values()) == total  # half is gone already
    assert sum(later.removing(0.75).widths.values()) == total / 2


def test_the_lowest_reachable_cost_is_that_of_all_least_widths(scored):
    graph, scores = scored("mobilenet")
    rules = WidthRules(align=16, min_fraction=0.3)
    selector = Selector(graph, scores, CostModel(graph), rules=rules)
    least = {group.name: allowed_widths(group, rules)[0] for group in graph.groups}
    assert selector.lowest == pytest.approx(graph.macs(least) / graph.macs())
    assert selector.nearest(0.001).widths == least


def test_large_graphs_are_decided_quickly(scored):
    graph, scores = scored("densenet")
    start = time.perf_counter()
    Selector(graph, scores, CostModel(graph), rules=WidthRules(16)).nearest(0.5)
    assert time.perf_counter() - start < 2  # measured: 0.02 s
