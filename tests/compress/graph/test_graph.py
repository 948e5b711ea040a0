"""Groups of coupled widths: exact counts, exact removal, nothing skipped without a reason."""

import copy
import inspect
import time

import pytest
import timm
import torch
from torch import nn

from compress.core.errors import InputError
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import Plan, make_plan
from compress.graph.tracer import Limits, trace
from compress.testing.spaces import enliven
from evaluators.cost import count_macs

SWIN = dict(img_size=32, patch_size=2, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=10)
CASES = {
    "resnet18": ("resnet18", {}, 64),
    "mobilenetv3": ("mobilenetv3_small_100", {}, 64),
    "regnet": ("regnety_002", {}, 64),
    "densenet": ("densenet121", {}, 64),
    "vit": ("vit_tiny_patch16_224", dict(img_size=64, depth=3), 64),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 32),
    "swinv2": ("swinv2_tiny_window8_256", {**SWIN, "patch_size": 2}, 32),
    "pvt": ("pvt_v2_b0", {}, 64),
    "convnext": ("convnext_atto", {}, 64),
    "mixer": ("mixer_s32_224", dict(img_size=64), 64),
}

EXACT = [
    *((case, "channels") for case in ("resnet18", "mobilenetv3", "regnet", "densenet", "convnext")),
    *((case, kind) for case in ("vit", "swin") for kind in ("heads", "head_dims", "mlp")),
    *((case, "mlp") for case in ("swinv2", "pvt", "mixer")),
]


def build(case):
    name, kwargs, size = CASES[case]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **kwargs).eval()
    enliven(model)
    return model, torch.randn(1, 3, size, size)


def activations():
    for name in nn.modules.activation.__all__:
        kind = getattr(nn, name)
        taken = inspect.signature(kind).parameters
        if name in {"GLU", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}:
            continue  # these mix channels
        given = {"threshold": 0.1, "value": 0.2} if name == "Threshold" else {}
        yield kind(**given)
        if "inplace" in taken:
            yield kind(**given, inplace=True)


@pytest.mark.parametrize("activation", list(activations()), ids=repr)
def test_channels_are_followed_through_every_activation_of_torch(activation):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 4, 3)).eval()
    graph = build_graph(model, torch.randn(1, 3, 8, 8))
    assert [group.size for group in graph.groups] == [8]


@pytest.mark.parametrize("case", CASES)
def test_predicted_cost_equals_the_cost_of_the_narrowed_model(case):
    model, x = build(case)
    graph = checked(model, build_graph(model, x), x)
    assert graph.params() == sum(p.numel() for p in model.parameters())
    assert graph.macs() == count_macs(model, x)
    kept = {group.name: torch.arange(max(1, group.size // 2)) for group in graph.groups}
    plan = make_plan(model, graph, kept)
    small = apply(plan, model)
    assert plan.params[1] == sum(p.numel() for p in small.parameters()) < plan.params[0]
    assert plan.macs[1] == count_macs(small, x) < plan.macs[0]
    assert plan.macs[0] == graph.macs()


@pytest.mark.parametrize(("case", "kind"), EXACT)
def test_removing_units_with_zero_outgoing_weights_leaves_the_output(case, kind):
    model, x = build(case)
    graph = checked(model, build_graph(model, x), x)
    tied = {name for tie in graph.ties for name in tie}
    groups = [
        g for g in graph.groups if g.kind == kind and g.size > 1 and g.name not in tied and not _normalised(model, g)
    ]
    assert groups
    generator = torch.Generator().manual_seed(1)
    kept = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        kept[group.name] = order[: max(1, group.size // 2)].sort().values
        _zero_outgoing(model, group, order[max(1, group.size // 2) :])
    small = apply(make_plan(model, graph, kept), model)
    with torch.no_grad():
        expected, got = model(x), small(x)
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def _normalised(model, group):
    """Whether a layer norm (over channels) or a gate's hidden state sees the group: then removal is not exact."""
    owners = {
        type(model.get_submodule(part.layer)).__name__ for part in group.slices if part.role == "vector" and part.layer
    }
    return any("LayerNorm" in name or "GroupNorm" in name for name in owners) or any(
        "." not in s.tensor for s in group.slices
    )


def _zero_outgoing(model, group, units):
    """Zero what leaves the units; a unit of a head's width also leaves through the product of queries and keys."""
    state = dict(model.named_parameters())
    for part in group.slices:
        if part.role == "in" or group.kind == "head_dims":
            index = part.positions[units].reshape(-1)
            with torch.no_grad():
                state[part.tensor].index_fill_(part.dim, index, 0.0)


def test_every_attention_and_merging_of_swin_is_prunable_and_tables_follow_the_heads():
    model, x = build("swin")
    graph = build_graph(model, x)
    kinds = [group.kind for group in graph.groups]
    assert kinds.count("heads") == kinds.count("head_dims") == kinds.count("mlp") == 4
    assert kinds.count("channels") == 2
    heads = next(group for group in graph.groups if group.kind == "heads")
    assert any(part.tensor.endswith("relative_position_bias_table") and part.dim == 1 for part in heads.slices)
    assert [skip.layer for skip in graph.skipped] == ["head.fc"]


def test_widths_a_model_recomputes_in_python_are_tied_or_left_whole_with_the_reason():
    model, x = build("pvt")
    graph = checked(model, build_graph(model, x), x)
    assert graph.ties
    assert any("the forward pass fails" in skip.reason for skip in graph.skipped)


def test_a_plan_survives_json_and_composes():
    model, x = build("resnet18")
    graph = build_graph(model, x)
    first = make_plan(model, graph, {g.name: torch.arange(0, g.size, 2) for g in graph.groups})
    middle = apply(first, model)
    again = build_graph(middle, x)
    second = make_plan(middle, again, {g.name: torch.arange(1, g.size) for g in again.groups}, dropped=again.blocks[:1])
    small = apply(second, middle)
    total = Plan.from_dict(first.then(second).to_dict())
    both = apply(total, model)
    assert total.macs == (first.macs[0], second.macs[1])
    with torch.no_grad():
        assert torch.equal(both.eval()(x), small.eval()(x))


def test_residual_blocks_are_found_and_removed():
    model, x = build("swin")
    graph = build_graph(model, x)
    assert graph.blocks == ("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0", "layers.1.blocks.1")
    plan = make_plan(model, graph, {}, dropped=graph.blocks[:2])
    small = apply(plan, model)
    assert count_macs(small, x) == plan.macs[1]
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]


def test_applying_a_plan_leaves_the_large_model_alone():
    model, x = build("resnet18")
    before = copy.deepcopy(model.state_dict())
    graph = build_graph(model, x)
    apply(make_plan(model, graph, {g.name: torch.arange(g.size // 2) for g in graph.groups}), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_plan_for_another_architecture_is_refused_by_the_name_of_the_tensor():
    model, x = build("resnet18")
    plan = make_plan(model, build_graph(model, x), {"layer4.0.conv1:channels": torch.arange(8)})
    with pytest.raises(InputError, match=r"layer4\.0"):
        apply(plan, timm.create_model("vgg11", num_classes=10))


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        for _ in range(1000):
            x = x + self.conv(x)[:, :3] * 0
            time.sleep(0.01)
        return x


def test_a_model_that_cannot_be_traced_in_time_is_refused_by_name():
    with pytest.raises(InputError, match=r"within 0\.2 s; it had reached layer"):
        trace(Slow(), torch.randn(1, 3, 8, 8), Limits(seconds=0.2))


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x).mean((2, 3))
        return self.second(x.sort(dim=1).values)


def test_an_operation_that_is_not_known_freezes_what_feeds_it_and_says_so():
    graph = build_graph(Sorted(), torch.randn(1, 3, 8, 8))
    assert {skip.layer for skip in graph.skipped} == {"first", "second"}
    assert "sort" in next(skip.reason for skip in graph.skipped if skip.layer == "first")


def test_a_failing_forward_pass_names_the_layer():
    model = Sorted()
    model.second = nn.Linear(9, 4)
    with pytest.raises(InputError, match="'second' fails"):
        build_graph(model, torch.randn(1, 3, 8, 8))


def test_a_model_that_makes_a_layer_at_its_first_call_is_refused_by_name():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), None

        def forward(self, x):
            x = self.first(x).mean((2, 3))
            if self.last is None:
                self.last = nn.Linear(x.shape[1], 5)
            return self.last(x)

    with pytest.raises(InputError, match=r"'last\.weight' is of a layer that the model makes at its first call"):
        build_graph(Late().eval(), torch.randn(1, 3, 8, 8))
