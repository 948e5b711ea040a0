"""From a budget to a plan: what users ask for is what they get, or one sentence why not."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn

import compress
from compress.core.errors import InputError
from compress.prune import structure
from compress.prune.blocks import block_influence, least_influential
from compress.prune.structure import Setting, plan_structure, prunable
from compress.prune.structure_config import StructureConfig
from evaluators.cost import count_macs
from evaluators.datasets.batch import Batch


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=10).eval()


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    kwargs = dict(
        img_size=32, patch_size=4, window_size=4, embed_dim=48, depths=(2, 2), num_heads=(2, 4), num_classes=10
    )
    return timm.create_model("swin_tiny_patch4_window7_224", **kwargs).eval()


X = torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("target", [0.7, 0.5, 0.3])
@pytest.mark.parametrize("allocation", ["global", "module", "uniform"])
def test_a_budget_is_met_within_two_percent(resnet, kind, target, allocation):
    plan = compress.plan(resnet, X, budget={kind: target}, allocation=allocation)
    before, after = getattr(plan, kind)
    assert abs(after / before - target) <= 0.02


@pytest.mark.parametrize("criterion", ["dimap", "magnitude", "lamp", "fpgm", "bn_scale", "random"])
def test_every_criterion_without_data_prunes_to_the_budget(resnet, criterion):
    plan = compress.plan(resnet, X, criterion=criterion, budget={"macs": 0.5})
    small = compress.apply(plan, resnet)
    assert small(X).shape == (1, 10)
    assert abs(plan.macs[1] / plan.macs[0] - 0.5) <= 0.02


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_a_criterion_that_needs_data_is_refused_without_and_works_with_it(resnet, criterion):
    with pytest.raises(InputError, match=criterion):
        compress.plan(resnet, X, criterion=criterion, budget={"macs": 0.5})
    batch = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    plan = compress.plan(resnet, X, criterion=criterion, budget={"macs": 0.5}, batches=lambda: iter([batch]))
    assert abs(plan.macs[1] / plan.macs[0] - 0.5) <= 0.02


def test_aligned_widths_are_multiples(resnet):
    plan = compress.plan(resnet, X, budget={"macs": 0.5}, align=16)
    assert plan.align == 16
    assert all(row.after % 16 == 0 for row in plan.layers)


def test_units_limit_what_is_removed_and_the_rest_is_named(swin):
    plan = compress.plan(swin, torch.randn(1, 3, 32, 32), budget={"macs": 0.8}, units=["mlp"])
    assert {row.kind for row in plan.layers} == {"mlp"}
    assert any("heads are not among prune.units" in skip.reason for skip in plan.skipped)


@pytest.mark.parametrize("glob", ["layer1.*", "layer1", "layer1.0"])
def test_exclude_keeps_layers_whole_also_by_a_module_around_them_and_says_so(resnet, glob):
    plan = compress.plan(resnet, X, budget={"macs": 0.7}, exclude=[glob])
    assert plan.layers and not any(row.name.startswith("layer1.0.conv1") for row in plan.layers)
    assert any(skip.layer == "layer1.0.conv1" and "prune.exclude" in skip.reason for skip in plan.skipped)


def test_include_takes_what_is_in_a_module(resnet):
    plan = compress.plan(resnet, X, ratio=0.3, include=["layer3"])
    assert plan.layers and all(row.name.startswith("layer3.") for row in plan.layers)


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_an_error_that_names_it(resnet, key):
    with pytest.raises(InputError, match=r"layre1.*matches no layer.*did you mean"):
        compress.plan(resnet, X, budget={"macs": 0.5}, **{key: ["layre1.0.conv1"]})


def test_a_budget_out_of_reach_says_the_nearest(resnet):
    with pytest.raises(InputError, match="nearest that can be reached"):
        compress.plan(resnet, X, budget={"macs": 0.1}, min_fraction=0.9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": {"macs": 1.5}}, "got 1.5; allowed above 0 and below 1"),
        ({"budget": {"macs": 0.5, "params": 0.5}}, "exactly one"),
        ({"budget": {"macs": 0.5}, "criterion": "dimpa"}, "did you mean 'dimap'"),
        ({"budget": {"macs": 0.5}, "algin": 8}, "algin"),
        ({}, "exactly one of budget, budgets and ratio"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(resnet, options, text):
    with pytest.raises(InputError, match=text):
        compress.plan(resnet, X, **options)


def test_the_blocks_that_change_the_stream_least_go_first_and_every_stage_keeps_one(swin):
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        swin.layers[0].blocks[1].attn.proj.weight.mul_(1e-3)
        swin.layers[0].blocks[1].attn.proj.bias.zero_()
        swin.layers[0].blocks[1].mlp.fc2.weight.mul_(1e-3)
        swin.layers[0].blocks[1].mlp.fc2.bias.zero_()
    batches = Setting(batches=lambda: iter([Batch(x, torch.zeros(4))]))
    config = StructureConfig(kind="structure", blocks=1, budget={"macs": 0.7})
    plan = plan_structure(swin, prunable(swin, x[:1], config), x[:1], config, batches)
    assert plan.dropped == ("layers.0.blocks.1",)
    influence = block_influence(swin, ("layers.0.blocks.0", "layers.0.blocks.1"), [x])
    assert influence["layers.0.blocks.1"] < influence["layers.0.blocks.0"]
    with pytest.raises(InputError, match=r"prune\.blocks.*at most 1"):
        least_influential(influence, 2)


def test_a_row_of_blocks_without_stages_keeps_one_of_all():
    influence = {f"blocks.{number}": 1.0 / (number + 1) for number in range(4)}
    assert least_influential(influence, 3) == ("blocks.1", "blocks.2", "blocks.3")
    with pytest.raises(InputError, match="at most 3, since every row of them keeps one"):
        least_influential(influence, 4)


def test_removing_blocks_without_data_is_refused(swin):
    with pytest.raises(InputError, match=r"prune\.blocks"):
        compress.plan(swin, torch.randn(1, 3, 32, 32), budget={"macs": 0.6}, blocks=1)


def test_a_pruned_model_can_be_pruned_again(resnet):
    once = compress.apply(compress.plan(resnet, X, budget={"macs": 0.6}), resnet)
    plan = compress.plan(once, X, budget={"macs": 0.6})
    twice = compress.apply(plan, once)
    assert abs(plan.macs[1] / plan.macs[0] - 0.6) <= 0.02
    assert twice(X).shape == (1, 10)


def test_align_auto_means_what_this_machine_runs_fastest(monkeypatch):
    monkeypatch.setattr(structure, "width_multiple", lambda target: SimpleNamespace(value=24 if target.here else 0))
    model = nn.Sequential(nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 4, 3)).eval()
    plan = structure.plan(model, torch.randn(1, 3, 8, 8), "magnitude", ratio=0.4)
    assert (plan.align, plan.layers[0].after) == (24, 48)


def test_align_auto_is_finer_where_no_multiples_of_the_target_meet_the_budget():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)).eval()
    plan = structure.plan(model, torch.randn(1, 3, 8, 8), "magnitude", {"macs": 0.625}, multiple=16)
    assert (plan.align, plan.layers[0].after) == (4, 20)
    with pytest.raises(InputError, match="align 16 allows are too far apart"):
        structure.plan(model, torch.randn(1, 3, 8, 8), "magnitude", {"macs": 0.625}, align=16)


def test_the_option_that_0_1_wrote_down_for_every_criterion_is_read_as_none():
    given = {"kind": "structure", "ratio": 0.5, "options": {"norm": 2}}
    assert StructureConfig.model_validate(given) == StructureConfig(kind="structure", ratio=0.5)
    assert StructureConfig.model_validate({**given, "criterion": "magnitude"}).options.norm == 2
    with pytest.raises(ValueError, match="norm"):
        StructureConfig.model_validate({**given, "options": {"norm": 1}})


class Scan(nn.Module):
    """A selective scan with four states for each channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, x):
        states = torch.einsum("bld,bln->bldn", self.a(x), self.b(x)).cumsum(1)
        return self.head(torch.einsum("bldn,bln->bld", states, self.c(x)))


def test_a_product_over_one_position_that_is_left_costs_what_is_counted():
    """torch multiplies element by element there, and a plan that foretold a product was refused."""
    torch.manual_seed(0)
    model, x = Scan().eval(), torch.randn(1, 5, 6)
    plan = compress.plan(model, x, "random", ratio=0.7, allocation="uniform", align=1)
    small = compress.apply(plan, model)
    assert small.b.out_features == 1
    assert plan.macs == (count_macs(model, x), count_macs(small, x))


class Frozen(nn.Module):
    """Two convolutions that its own code takes no gradients of, and two more."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 32, 32)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.layers[1](self.layers[0](x).relu()).relu()
        return self.head(self.layers[3](self.layers[2](x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_what_no_gradient_reaches_stays_whole_by_name(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = Frozen(), torch.randn(8, 3, 8, 8)
    batches = [(x, torch.arange(8))]
    plan = compress.plan(model, x, criterion, {"macs": 0.6}, batches=batches, align=1)
    assert compress.apply(plan, model).layers[0].out_channels == 16
    (why,) = [skip.reason for skip in plan.skipped if skip.layer == "layers.0"]
    assert why == "channels stay whole: no gradient of the loss reaches their weights, as under torch.no_grad()"
    by_weight = compress.plan(model, x, "magnitude", {"macs": 0.6}, align=1)
    assert compress.apply(by_weight, model).layers[0].out_channels < 16
