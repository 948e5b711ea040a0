"""Unit criteria: what they measure, what they refuse, and that heads are matched dimension by dimension."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.criteria import unit_criteria
from compress.criteria.magnitude import MagnitudeUnits
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData
from compress.graph.build import build_graph
from compress.graph.cost_model import CostModel
from evaluators.datasets.batch import Batch

IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class ConvNet(nn.Module):
    def __init__(self, seed: int = 0, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(12, 20, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(20) if norm else nn.Identity()
        self.fc = nn.Linear(20, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


OURS = [name for name in unit_criteria if not name.startswith("nni:")]  # NNI's are tried where NNI is


def batches(count: int = 3, size: int = 16):
    generator = torch.Generator().manual_seed(1)
    found = [
        Batch(torch.randn(size, 3, 16, 16, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(count)
    ]
    return lambda: iter(found)


def scores_of(model: nn.Module, criterion: str, **options) -> dict[str, Tensor]:
    graph = build_graph(model, IMAGE)
    return score_units(model, graph, criterion, ScoringData(graph, batches=batches(), **options))[1]


@pytest.mark.parametrize("criterion", OURS)
def test_a_dead_channel_is_the_first_to_go(criterion):
    model = ConvNet()
    with torch.no_grad():
        for name in ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"):
            model.get_parameter(name)[7] = 0
        model.conv2.weight[:, 7] = 0
    scores = scores_of(model, criterion)["conv1:channels"]
    assert scores.dtype == torch.float64 and scores.shape == (12,) and torch.isfinite(scores).all()
    if criterion not in ("random", "fpgm"):  # these do not ask whether a filter does anything
        assert scores.argmin() == 7


@pytest.mark.parametrize("criterion", OURS)
def test_scores_are_the_same_bit_for_bit_with_the_same_generator(criterion):
    first, second = (scores_of(ConvNet(), criterion, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("criterion", OURS)
def test_scoring_leaves_the_model_as_it_was(criterion):
    model = ConvNet().train()
    model.fc.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores_of(model, criterion)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model.bn1.training and not model.fc.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_magnitude_is_the_norm_over_rows_and_columns_of_a_unit():
    model = ConvNet()
    for norm in (1, 2):
        found = scores_of(model, MagnitudeUnits(norm=norm))["conv1:channels"]
        rows = model.conv1.weight.double().abs().pow(norm).sum((1, 2, 3))
        columns = model.conv2.weight.double().abs().pow(norm).sum((0, 2, 3))
        expected = (rows + columns).pow(1 / norm)
        torch.testing.assert_close(found, (expected / expected.mean()).detach())


def test_dimap_is_the_share_among_stronger_units_summed_over_layers_over_cost():
    model = ConvNet()
    graph = build_graph(model, IMAGE)
    found = scores_of(model, "dimap")["conv1:channels"]
    expected = torch.zeros(12, dtype=torch.float64)
    for energy in (
        model.conv1.weight.detach().double().square().sum((1, 2, 3)),
        model.conv2.weight.detach().double().square().sum((0, 2, 3)),
    ):
        for unit in range(12):
            expected[unit] += energy[unit] / energy[energy >= energy[unit]].sum()
    saved = graph.macs() - graph.macs({"conv1:channels": 11})
    torch.testing.assert_close(found, expected / (saved / graph.macs()))


def test_dimap_counts_what_it_cannot_prune_as_stronger():
    """A layer that reads two streams: the share of a unit is one of the whole layer, not of its own stream."""

    class Concat(ConvNet):
        def __init__(self) -> None:
            super().__init__(norm=False)
            self.conv2 = nn.Conv2d(15, 20, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.conv1(x).relu(), x], 1)
            return self.fc(self.conv2(x).relu().mean((2, 3)))

    model = Concat()
    with torch.no_grad():
        model.conv1.weight.fill_(0.1)  # equal rows: shares 1, 1/2, ... 1/12
        model.conv2.weight.fill_(0.1)
    graph = build_graph(model, IMAGE)
    saved = (graph.macs() - graph.macs({"conv1:channels": 11})) / graph.macs()
    shares = (scores_of(model, "dimap")["conv1:channels"] * saved).sort(descending=True).values
    ranks = torch.arange(1, 13, dtype=torch.float64)
    torch.testing.assert_close(shares, 1 / ranks + 1 / (3 + ranks))


@pytest.mark.parametrize("criterion", ["dimap", "lamp"])
def test_relative_criteria_ignore_the_scale_of_a_layer(criterion):
    model, scaled = ConvNet(), ConvNet()
    with torch.no_grad():
        for layer in (scaled.conv1, scaled.conv2, scaled.fc):
            layer.weight.mul_(8.0 if criterion == "lamp" else {12: 4.0, 20: 0.5, 5: 16.0}[len(layer.weight)])
    first, second = scores_of(model, criterion), scores_of(scaled, criterion)
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_dimap_trades_distortion_for_what_the_budget_counts():
    model = ConvNet()
    graph = build_graph(model, IMAGE)
    by_macs, by_params = (scores_of(model, "dimap", counted=kind) for kind in ("macs", "params"))
    for name in by_macs:
        ratio = by_macs[name] / by_params[name]
        macs, params = (CostModel(graph, kind) for kind in ("macs", "params"))
        expected = (params.savings()[name] / params.dense) / (macs.savings()[name] / macs.dense)
        torch.testing.assert_close(ratio, torch.full_like(ratio, expected))


@pytest.mark.parametrize("criterion", ["magnitude", "fpgm", "bn_scale"])
def test_absolute_criteria_have_mean_one_in_every_group(criterion):
    for scores in scores_of(ConvNet(), criterion).values():
        assert scores.mean() == pytest.approx(1.0)


def test_fpgm_removes_the_filter_at_the_median():
    model = ConvNet()
    with torch.no_grad():
        model.conv1.weight[5] = model.conv1.weight[torch.arange(12) != 5].mean(0)
    assert scores_of(model, "fpgm")["conv1:channels"].argmin() == 5


def test_bn_scale_orders_by_gamma_and_refuses_layers_without_batch_norm():
    model = ConvNet()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.linspace(-1, 1.4, 12))
    assert torch.equal(scores_of(model, "bn_scale")["conv1:channels"].argsort(), model.bn1.weight.abs().argsort())
    with pytest.raises(InputError, match=r"bn_scale.*without one are conv1, conv2"):
        scores_of(ConvNet(norm=False), "bn_scale")


def test_taylor_predicts_what_shrinking_a_channel_does_to_the_loss():
    """The score is the derivative of the loss with respect to a factor on the rows, and one on the columns."""
    model = ConvNet(norm=False).double()
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8) % 5
    graph = build_graph(model, IMAGE.double())
    data = ScoringData(graph, batches=lambda: iter([Batch(images, labels)]))
    scores = score_units(model, graph, "taylor", data)[1]["conv1:channels"]

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(images), labels))

    def derivative(weight: Tensor) -> float:
        step, (up, down) = 1e-5, (weight * (1 + 1e-5), weight * (1 - 1e-5))
        values = []
        original = weight.clone()
        for changed in (up, down):
            weight.copy_(changed)
            values.append(loss())
        weight.copy_(original)
        return abs(values[0] - values[1]) / (2 * step)

    with torch.no_grad():
        expected = torch.tensor(
            [derivative(model.conv1.weight[u]) + derivative(model.conv2.weight[:, u]) for u in range(12)]
        ).double()
    torch.testing.assert_close(scores / scores.sum(), expected / expected.sum(), rtol=1e-4, atol=1e-8)


def test_hessian_estimates_the_gauss_newton_diagonal_without_bias():
    """For a linear classifier the diagonal is known: the sum of x^2 p (1 - p)."""
    torch.manual_seed(0)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.mean((2, 3))))

    model = Linear().eval()
    images = torch.randn(64, 3, 4, 4) * 4
    graph = build_graph(model, images[:1])
    data = ScoringData(graph, batches=lambda: iter([Batch(images, torch.zeros(64))] * 150))
    found = score_units(model, graph, "hessian", data)[1]["first:mlp"]
    with torch.no_grad():
        inputs = images.mean((2, 3))
        hidden, share = model.first(inputs), model(images).softmax(1)
        spread = torch.diag_embed(share) - share[:, :, None] * share[:, None]
        last = (hidden.square()[:, None] * (share * (1 - share))[:, :, None]).sum(0)
        back = torch.einsum("au,nab,bu->nu", model.last.weight, spread, model.last.weight)
        first = (back[:, :, None] * inputs.square()[:, None]).sum(0)
        expected = (last * model.last.weight.square()).sum(0) + (first * model.first.weight.square()).sum(1)
    torch.testing.assert_close(found / found.sum(), (expected / expected.sum()).double(), rtol=0.1, atol=0.01)


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_criteria_that_need_data_say_so(criterion):
    model = ConvNet()
    graph = build_graph(model, IMAGE)
    with pytest.raises(InputError, match=rf"prune\.criterion: '{criterion}' needs data"):
        score_units(model, graph, criterion, ScoringData(graph))


def test_weights_that_are_not_finite_are_refused_by_name():
    model = ConvNet()
    with torch.no_grad():
        model.conv2.weight[3, 2] = torch.nan
    with pytest.raises(InputError, match=r"conv2\.weight"):
        scores_of(model, "magnitude")


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
    ).eval()


@pytest.mark.parametrize("criterion", ["dimap", "magnitude", "lamp", "taylor", "hessian", "fpgm"])
def test_head_dimensions_are_matched_by_rank_in_every_head(vit, criterion):
    graph = build_graph(vit, IMAGE)
    matched, scores = score_units(vit, graph, criterion, ScoringData(graph, batches=batches(1)))
    name = "blocks.0.attn.qkv:head_dims"
    assert graph.group(name).repeats == 3
    assert (scores[name].diff() <= 0).all() and len(scores[name]) == 8
    before, after = (g.group(name).slices[0].positions for g in (graph, matched))
    assert not torch.equal(before, after)
    for head in range(3):
        assert torch.equal(before[:, head].sort(0).values, after[:, head].sort(0).values)


def test_a_dead_dimension_of_each_head_ends_up_in_the_last_unit(vit):
    dead = [5, 0, 3]  # another one in every head
    with torch.no_grad():
        for head, place in enumerate(dead):
            rows = [part * 24 + head * 8 + place for part in range(3)]
            vit.blocks[1].attn.qkv.weight[rows] = 0
            vit.blocks[1].attn.proj.weight[:, head * 8 + place] = 0
    graph = build_graph(vit, IMAGE)
    matched, scores = score_units(vit, graph, "dimap", ScoringData(graph))
    name = "blocks.1.attn.qkv:head_dims"
    columns = next(part for part in matched.group(name).slices if part.role == "in")
    assert columns.positions[-1].flatten().tolist() == [head * 8 + place for head, place in enumerate(dead)]
    assert scores[name][-1] == 0 < scores[name][-2]


def test_mean_one_holds_for_matched_units(vit):
    graph = build_graph(vit, IMAGE)
    _, scores = score_units(vit, graph, "magnitude", ScoringData(graph))
    assert all(score.mean() == pytest.approx(1.0) for score in scores.values())
