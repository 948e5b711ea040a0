"""No plan changes what a model computes without saying so: kinds of code that went wrong, each with what is right."""

import copy
import importlib.util
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.core.errors import InputError
from compress.core.tensors import call, tensors_in
from compress.graph.apply import apply
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.conflict import conflict
from compress.graph.exactness import Exactness
from compress.graph.plan import make_plan

CASES = Path(__file__).parents[2] / "cases"
IMAGE = (1, 3, 32, 32)


def load(name):
    """Return a model of tests/cases in evaluation mode and its inputs."""
    path, _, net = name.partition(":")
    spec = importlib.util.spec_from_file_location(path, CASES / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    model = getattr(module, net or ("make" if hasattr(module, "make") else "Net"))()
    inputs = module.inputs() if hasattr(module, "inputs") else (torch.randn(IMAGE),)
    return model.eval(), inputs[0] if len(inputs) == 1 else inputs


def silenced(model, plan):
    """Return a copy of the dense model in which every position that the plan removes is zero."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.kept.items():
            for dim, indices in dims.items():
                gone = [i for i in range(tensors[name].shape[dim]) if i not in indices]
                tensors[name].index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
    return model


def whole(plan_or_graph):
    return {skip.layer: skip.reason for skip in plan_or_graph.skipped}


def assert_same(dense, small, inputs):
    with torch.no_grad():
        for expected, got in zip(tensors_in(call(dense, inputs)), tensors_in(call(small, inputs)), strict=True):
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


# name -> a budget of MACs that must be reached, and layers that must not be among those that stay whole
SAME = {
    "attention_heads_literal": (0.5, ["a.o"]),
    "auxiliary_head": (0.55, ["a", "b", "aux.0"]),
    "boolean_mask": (0.6, ["a"]),
    "config_heads": (0.5, ["p"]),
    "ecapa": (0.5, ["blocks.0.tdnn1.conv"]),
    "empty_parameter": (0.5, ["a", "b"]),
    "functional_grouped_conv": (0.5, ["a", "b"]),
    "heads_of_stream": (0.5, ["patch", "blocks.0.proj", "blocks.2.proj"]),
    "inf_buffer": (0.5, ["qkv", "m.0"]),
    "inplace_input": (0.5, ["a", "b"]),
    "mixed_kernels": (0.5, ["a", "b", "even.3", "uneven.0", "uneven.3"]),
    "multitask": (0.5, ["task.seg.0", "task.depth.0"]),
    "pool_size_attribute": (0.5, ["stem.0", "c1.up"]),
    "property_heads": (0.5, ["p"]),
    "shuffle_literal": (0.5, ["b"]),
    "split_attention": (0.4, ["a", "split.conv", "split.fc2"]),
    "uneven_chunk": (0.5, ["stem.0", "b"]),
    "unet3d": (0.5, ["e1.a", "d2.b"]),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_left_computes_what_the_dense_model_does_without_the_removed_units(name):
    model, inputs = load(name)
    budget, narrowed = SAME[name]
    plan = compress.plan(model, inputs, "random", {"macs": budget}, align=1)
    small = apply(plan, model)
    assert_same(silenced(model, plan), small, inputs)
    changed = {row.name.split(":")[0] for row in plan.layers if row.after < row.before}
    assert changed
    assert not set(narrowed) & set(whole(plan))


# norms over a narrowed width, ties, tables of constants: held against the dense model with norms over what stays
NORMALISED = {
    "attention_scale": (0.5, ["patch", "a1.v"]),
    "catnet": (0.5, ["stem.0", "lateral.0"]),
    "dhvt": (0.42, ["patch_embed.proj.3", "blocks.0.attn.qkv"]),
    "kan": (0.5, ["k1", "k2"]),
    "mha_vit": (0.5, ["patch", "enc.layers.0.self_attn"]),
    "poincare": (0.5, ["c1.fc", "c3.fc"]),
    "weight_norm": (0.5, ["wn", "sn"]),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_widths_of_other_kinds_of_layers_are_narrowed_and_checked(name):
    model, inputs = load(name)
    budget, narrowed = NORMALISED[name]
    plan = compress.plan(model, inputs, "random", {"macs": budget}, align=1)
    assert not set(narrowed) & set(whole(plan))
    assert plan.macs[1] <= (budget + 0.02) * plan.macs[0]
    with torch.no_grad():
        assert all(torch.isfinite(output).all() for output in tensors_in(call(apply(plan, model), inputs)))


def test_a_norm_over_a_width_is_told_in_the_plan():
    model, x = load("mha_vit")
    plan = compress.plan(model, x, "random", {"macs": 0.6}, align=1)
    assert {row.name for row in plan.layers if row.normalised} == {"patch:channels"}


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("uneven_chunk", "a", "uneven"),
        ("attention_scale", "a1.q:head_dims", "mul gives other values"),
        ("config_heads", "a.qkv", "heads stay whole"),
        ("property_heads", "a.qkv:heads", "heads stay whole"),
        ("attention_heads_literal", "a.q:heads", "heads stay whole"),
        ("pool_over_channels", "a", ""),
    ],
)
def test_what_cannot_be_narrowed_stays_whole_with_the_reason(name, layer, reason):
    model, x = load(name)
    graph = checked(model, build_graph(model, x), x)
    assert reason in whole(graph)[layer]


@pytest.mark.parametrize("net", ["Heads", "Shift", "Shuffle", "Scale"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_units_that_are_zero_go_without_a_trace_or_stay(net, criterion):
    model, x = load(f"zero_units:{net}")
    plan = compress.plan(model, x, criterion, ratio=0.3, align=1)
    assert_same(silenced(model, plan), apply(plan, model), x)


def test_a_ratio_removes_that_share_of_every_group_where_some_are_tied():
    model, x = load("ratio_with_ties")
    plan = compress.plan(model, x, "magnitude", ratio=0.5, allocation="uniform", align=4)
    assert {row.after for row in plan.layers} == {32}


def test_a_number_that_is_no_width_stays_and_predicted_macs_are_the_counted_ones():
    from evaluators.cost import count_macs

    model, x = load("pool_size_attribute")
    plan = compress.plan(model, x, "random", {"macs": 0.5}, align=1)
    assert "pool_size" not in {name for values in plan.attributes.values() for name in values}
    assert count_macs(apply(plan, model), x) == plan.macs[1]


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *given):
        return self.net(*given)


@pytest.mark.parametrize(("name", "tried"), [("ratio_with_ties", True), ("ddpm_unet", False)])
def test_a_wrapper_around_a_model_changes_no_group(name, tried):
    model, inputs = load(name)
    around = Wrapped(model).eval()
    plain, wrapped = build_graph(model, inputs), build_graph(around, inputs)
    if tried:
        plain, wrapped = checked(model, plain, inputs), checked(around, wrapped, inputs)
    assert [f"net.{group.name}" for group in plain.groups] == [group.name for group in wrapped.groups]
    assert [tuple(f"net.{name}" for name in tie) for tie in plain.ties] == list(wrapped.ties)


class Two(nn.Module):
    """Takes an image and a whole number for each, and gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.table = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Embedding(10, 16)

    def forward(self, image, step):
        x = self.a(image) + self.table(step)[:, :, None, None]
        return {"features": self.b(x.relu()), "energy": [x.square().sum((1, 2, 3))]}


@pytest.mark.parametrize("form", [tuple, dict])
def test_several_inputs_and_outputs(form):
    model = Two().eval()
    inputs = (torch.randn(1, 3, 8, 8), torch.tensor([3]))
    inputs = inputs if form is tuple else dict(zip(("image", "step"), inputs, strict=True))
    plan = compress.plan(model, inputs, "random", ratio=0.5, align=1)
    assert plan.macs == (16 * 27 * 36 + 8 * 144 * 16, 8 * 27 * 36 + 8 * 72 * 16)
    assert_same(silenced(model, plan), apply(plan, model), inputs)


class Halves(nn.Module):
    """Channels 0-7 and 8-15 go different ways, by number."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x)
        left, right = self.cut(x)
        return self.fc(self.b(torch.cat([left.relu(), right.sigmoid() * 2], 1)).mean((2, 3)))


CUTS = {
    "slices": lambda x: (x[:, :8], x[:, 8:]),
    "split": lambda x: x.split(8, 1),
    "split of sizes": lambda x: x.split([8, 8], 1),
    "narrow": lambda x: (x.narrow(1, 0, 8), x.narrow(1, x.shape[1] - 8, 8)),
    "unflatten": lambda x: x.unflatten(1, (2, 8)).unbind(1),
    "view": lambda x: x.view(x.shape[0], 2, 8, *x.shape[2:]).unbind(1),
    "fixed view": lambda x: x.reshape(x.shape[0], -1, 8, *x.shape[2:]).flatten(1, 2).chunk(2, 1),
    "rolled": lambda x: torch.roll(x, 3, 1).chunk(2, 1),
    "every other": lambda x: (x[:, ::2], x[:, 1::2]),
    "uneven": lambda x: (lambda parts: (parts[0], torch.cat(parts[1:], 1)))(x.chunk(3, 1)),
    "shifted": lambda x: (torch.cat([x[:, 8:12], x[:, :4]], 1), x[:, -8:]),
    "picked": lambda x: (x[:, [1, 3, 5]], x[:, 3:]),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_sizes_and_offsets_written_as_numbers_never_change_the_result(name, seed):
    torch.manual_seed(seed)
    model, x = Halves(CUTS[name]).eval(), torch.randn(2, 3, 10, 10)
    try:
        plan = compress.plan(model, x, "random", ratio=0.4, align=1, units=["channels"])
    except InputError as error:
        assert "no layer is left" in str(error)
        return
    assert_same(silenced(model, plan), apply(plan, model), x)


class Shuffled(nn.Module):
    """Draws noise, and mixes channels in four groups, a number that it keeps where none is looked for."""

    def __init__(self, groups):
        super().__init__()
        self.a, self.b, self.fc, self.groups = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3), nn.Linear(16, 5), groups

    def forward(self, x):
        x = self.a(x)
        x = x + torch.rand_like(x) + torch.bernoulli(torch.full_like(x, 0.5))
        b, _, h, w = x.shape
        x = x.view(b, self.groups[0], -1, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return self.fc(torch.nn.functional.dropout(self.b(x), 0.3).mean((2, 3)))


class ChannelsLast(nn.Module):
    """Tensors whose channels lie last in memory, as after a layer norm over them: some kernels then go other ways."""

    def __init__(self):
        super().__init__()
        self.a, self.inner = nn.Conv2d(3, 70, 3), nn.LayerNorm(70)
        self.b, self.pool, self.norm = nn.Conv2d(70, 40, 3), nn.AdaptiveAvgPool2d(1), nn.LayerNorm(40)
        self.fc = nn.Linear(40, 5)

    def forward(self, x):
        x = self.inner(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(self.norm(self.pool(self.b(x)).flatten(1)))


def test_every_operation_is_compared_in_other_memory_layouts():
    model, x = ChannelsLast().eval(), torch.randn(1, 3, 10, 10)
    graph = build_graph(model, x)
    kept = {group.name: torch.arange(1, group.size, 2) for group in graph.groups}
    exact = Exactness(model, x)
    assert {len(units) for units in kept.values()} == {35, 20}
    assert exact.fault(graph, kept) is None
    assert exact.complete


class Routed(nn.Module):
    """Takes one of two layers of unlike sizes, as the input says."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3, 4), nn.Linear(16, 24), nn.Linear(24, 5)
        self.ways = nn.ModuleList(nn.Conv2d(16, 16, size, padding=size // 2) for size in (1, 3))

    def forward(self, x):
        return self.fc(self.b(self.ways[int(x.mean() > 0)](self.a(x)).mean((2, 3))).relu())


def test_a_layer_that_no_pass_reaches_stays_whole_and_is_named():
    model, x = Routed().eval(), torch.randn(1, 3, 16, 16)
    x = x - x.mean() - 0.1
    plan = compress.plan(model, x, "random", ratio=0.4, align=1)
    assert "no forward pass reached it" in whole(plan)["ways.1"]
    assert not any(name.startswith("ways.1") for name in plan.kept)
    assert all("'ways.1' may read or give it" in whole(plan)[layer] for layer in ("a", "ways.0"))
    assert_same(silenced(model, plan), apply(plan, model), -x)  # goes the other way


def test_a_model_that_cannot_be_copied_is_one_sentence():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).eval()
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="the model cannot be copied: cannot pickle"):
        compress.plan(model, torch.randn(1, 3, 8, 8), "random", ratio=0.4, align=1)


def test_what_is_drawn_at_random_hides_no_mistake():
    torch.manual_seed(0)
    model, x = Shuffled({0: 4}).eval(), torch.randn(1, 3, 10, 10)
    state = torch.get_rng_state()
    graph = checked(model, build_graph(model, x), x)
    assert torch.equal(torch.get_rng_state(), state)
    assert "convolution gives other values" in whole(graph)["a:channels"]
    assert {group.size for group in graph.groups if group.name.startswith("a:")} == {8}


def test_a_choice_that_goes_wrong_is_mended_and_made_again(monkeypatch):
    """The trials let everything pass here, so the faults show only in the plan that was chosen."""
    monkeypatch.setattr("compress.graph.known.checked", lambda model, graph, inputs: graph)
    model, x = load("attention_heads_literal")
    plan = compress.plan(model, x, "magnitude", ratio=0.5, align=1)
    assert "heads stay whole" in whole(plan)["a.q:heads"]
    assert_same(silenced(model, plan), apply(plan, model), x)


def test_memory_that_runs_out_is_no_reason_to_keep_a_layer_whole():
    class Hungry(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            x = self.a(x)
            if x.shape[1] != 8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.b(x)

    model, x = Hungry().eval(), torch.randn(1, 3, 8, 8)
    graph = build_graph(model, x)
    with pytest.raises(torch.OutOfMemoryError):
        checked(model, graph, x)


def test_the_model_is_the_same_after_the_check():
    model, x = load("dhvt")
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    checked(model, build_graph(model, x), x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def test_a_wrong_plan_is_found_where_it_goes_wrong():
    model, x = load("functional_grouped_conv")
    graph = build_graph(model, x)
    name = graph.groups[0].name
    kept = {name: torch.arange(12)}
    plan = make_plan(model, graph, kept)
    wrong = {**plan.kept, "b.weight": {1: tuple(range(1, 13))}}  # other columns than the rows of the layer before
    assert Exactness(model, x).fault(graph, kept, finished=plan) is None
    fault = Exactness(model, x).fault(graph, kept, finished=replace(plan, kept=wrong))
    assert fault is not None and fault.values and fault.module == "b"


def test_the_smallest_set_that_fails_is_found():
    calls = []

    def fails(lanes):
        calls.append(lanes)
        return {("b",), ("f",)} <= set(lanes)

    assert conflict([(letter,) for letter in "abcdefgh"], fails) == [("b",), ("f",)]
    assert len(calls) < 12
