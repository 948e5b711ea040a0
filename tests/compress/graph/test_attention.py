"""Torch's own attention layers: narrowed heads, head widths and streams compute what the silenced dense ones do."""

import copy

import pytest
import torch
from torch import nn

from compress.graph.apply import apply
from compress.graph.attention import NarrowAttention
from compress.graph.build import build_graph
from compress.graph.check import checked
from compress.graph.plan import Plan, make_plan

LAYERS = {
    "plain": {},
    "sequence first": {"batch_first": False},
    "no bias": {"bias": False},
    "other keys and values": {"kdim": 12, "vdim": 20},
    "added keys": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_free_layer_computes_what_torchs_layer_does(kind, need_weights):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, **{"batch_first": True, **LAYERS[kind]}).eval()
    free = copy.deepcopy(layer)
    NarrowAttention.free(free)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, layer.kdim), torch.randn(2, 7, layer.vdim)
    if not layer.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    padding = torch.arange(7).expand(2, -1) > torch.tensor([[5], [3]])
    masks = (
        {},
        {"attn_mask": torch.ones(5, 7).triu(1).bool(), "is_causal": True},
        {"attn_mask": torch.randn(8, 5, 7), "average_attn_weights": False},
        {"key_padding_mask": padding, "attn_mask": torch.ones(5, 7).triu(2).bool()},
    )
    for given in masks:
        results = (f(query, key, value, need_weights=need_weights, **given) for f in (free, layer))
        for mine, theirs in zip(*results, strict=True):
            assert (mine is None and theirs is None) or torch.allclose(mine, theirs, atol=1e-6)
    if layer.batch_first:
        single = [x[0] for x in (query, key, value)]
        assert torch.allclose(free(*single)[0], layer(*single)[0], atol=1e-6)


class Net(nn.Module):
    """An encoder and a decoder of torch's own between an image and numbers."""

    def __init__(self, batch_first, norm_first):
        super().__init__()
        kind = {"dropout": 0.0, "batch_first": batch_first, "norm_first": norm_first}
        self.patch, self.queries = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 5, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, **kind)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 48, **kind), 1)
        self.head, self.batch_first = nn.Linear(32, 3), batch_first

    def forward(self, x):
        memory, queries = self.patch(x).flatten(2).transpose(1, 2), self.queries.expand(len(x), -1, -1)
        if not self.batch_first:
            memory, queries = memory.transpose(0, 1), queries.transpose(0, 1)
        return self.head(self.decoder(queries, self.encoder(memory)))


@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, True), (False, False)])
def test_encoder_and_decoder_layers_are_narrowed_exactly_and_rebuilt_from_the_plan(batch_first, norm_first):
    torch.manual_seed(0)
    model, x = Net(batch_first, norm_first).eval(), torch.randn(1, 3, 16, 16)
    graph = checked(model, build_graph(model, x), x)
    assert [group.kind for group in graph.groups].count("heads") == 3
    assert [group.kind for group in graph.groups].count("head_dims") == 3
    assert any(group.name == "patch:channels" for group in graph.groups)
    assert [skip.layer for skip in graph.skipped] == ["head"]

    inner = [group for group in graph.groups if group.name != "patch:channels"]  # a layer norm sees the stream
    kept = {group.name: torch.arange(0, group.size, 2) for group in inner}
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for group in inner:
            for part in group.slices:
                tensor = silenced.get_parameter(part.tensor)
                tensor.index_fill_(part.dim, part.positions[1::2].reshape(-1), 0.0)
    plan = Plan.from_dict(make_plan(model, graph, kept).to_dict())
    small = apply(plan, model).eval()
    torch.testing.assert_close(small(x), silenced(x), rtol=0, atol=1e-5)

    stream = make_plan(model, graph, {"patch:channels": torch.arange(20)})
    assert apply(stream, model)(x).shape == model(x).shape
    again = build_graph(small, x)
    assert again.macs() == plan.macs[1]
    assert {group.size for group in again.groups if group.kind == "heads"} == {2}


class Translator(nn.Module):
    """torch's own transformer, which compares the width of its inputs with a number that it keeps."""

    def __init__(self):
        super().__init__()
        self.source, self.target, self.head = nn.Linear(6, 16), nn.Linear(5, 16), nn.Linear(16, 4)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, batch_first=True)

    def forward(self, source, target):
        return self.head(self.transformer(self.source(source), self.target(target)))


def test_the_stream_of_torchs_transformer_is_narrowed():
    model, inputs = Translator().eval(), (torch.randn(1, 5, 6), torch.randn(1, 3, 5))
    graph = checked(model, build_graph(model, inputs), inputs)
    assert {skip.layer for skip in graph.skipped} == {"head"}
    stream = next(group for group in graph.groups if "source" in group.layers)
    small = apply(make_plan(model, graph, {stream.name: torch.arange(10)}), model)
    assert small.transformer.d_model == small.source.out_features == 10
    assert small(*inputs).shape == (1, 3, 4)
