"""Tokens leave a vision transformer in stages: which ones, how many, and what that costs."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.export.exporters import ExportConfig, LatencyConfig, export
from compress.prune.kinds import Surroundings, check_pruning, prune_bundle
from compress.prune.kinds.paths import PathsConfig
from compress.prune.kinds.tokens import TokensConfig
from compress.testing.transforms import check_transform
from compress.transforms.paths import Paths
from compress.transforms.tokens import Tokens, TokenStages, counts_of, cuts_of, merged_by_likeness, token_row
from evaluators.cost import count_macs
from evaluators.datasets import Preprocessing
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
AROUND = Surroundings(None, "cpu", 0, LatencyConfig(), ExportConfig())
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # timm's are small: nothing would differ
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def bundle(model: nn.Module, name: str = "vit_tiny_patch16_224", **kwargs: object) -> Bundle:
    config = ModelConfig(source="timm", name=name, kwargs=kwargs)
    return Bundle(model, config, DEFAULT.bind(5, (3, 32, 32)), Preprocessing.of_model({}, (3, 32, 32)))


def staged(model: nn.Module, left: dict[int, int], mode: str = "drop") -> nn.Module:
    return Tokens(tokens=64, left=left, mode=mode).apply(copy.deepcopy(model), IMAGES[:1]).eval()


def coming_in(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what every block is given."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_nothing_changes_where_all_tokens_stay() -> None:
    model = vit()
    for mode in ("drop", "merge"):
        assert torch.equal(staged(model, {1: 64, 2: 64, 3: 64}, mode)(IMAGES), model(IMAGES))


def test_counts_and_cuts_are_the_published_ones() -> None:
    assert cuts_of(12, 4) == [3, 6, 9] and cuts_of(32, 4) == [8, 16, 24]
    assert counts_of(196, 0.5, 4) == [196, 98, 49, 24]
    assert counts_of(100, 0.7, 3) == [100, 70, 49]  # in floats 0.7^2 * 100 is below 49
    assert counts_of(4, 0.3, 4) == [4, 1, 1, 1]


@pytest.mark.parametrize(
    "stages, keep, ratio", [(4, 0.5, 0.469), (3, 0.5, 0.583), (5, 0.5, 0.388), (4, 0.4, 0.406), (4, 0.6, 0.544)]
)
def test_tokens_times_layers_are_the_published_ratio(stages: int, keep: float, ratio: float) -> None:
    counts = counts_of(10**6, keep, stages)
    assert sum(counts) / stages / 10**6 == pytest.approx((1 - keep**stages) / (stages * (1 - keep)), abs=1e-5)
    assert sum(counts) / stages / 10**6 == pytest.approx(ratio, abs=6e-4)


@pytest.mark.parametrize("mode", ["drop", "merge"])
def test_the_blocks_get_as_many_tokens_as_said_with_the_class_token_first(mode: str) -> None:
    model = vit()
    seen = coming_in(staged(model, {1: 32, 2: 16, 3: 5}, mode), IMAGES)
    assert [tokens.shape[1] for tokens in seen] == [65, 33, 17, 6]
    dense = copy.deepcopy(model)
    after_first = dense.blocks[0](coming_in(dense, IMAGES)[0])
    assert torch.equal(seen[1][:, 0], after_first[:, 0])


def test_the_tokens_that_stay_are_the_most_attended_in_their_order_each_image_its_own() -> None:
    model = vit()
    given = coming_in(staged(model, {2: 20}), IMAGES)[2]
    block, x = model.blocks[2], coming_in(model, IMAGES)[2]
    q, k, _ = block.attn.qkv(block.norm1(x)).reshape(3, 65, 3, 2, 16).permute(2, 0, 3, 1, 4)
    scores = (q[:, :, :1] @ k[:, :, 1:].transpose(-2, -1) / 16**0.5).softmax(-1).mean(1)[:, 0]
    places = [sorted(scores[image].argsort(descending=True)[:20].tolist()) for image in range(3)]
    assert places[0] != places[1] != places[2]
    for image in range(3):
        assert torch.equal(given[image, 1:], x[image, 1:][places[image]])
    found = [[int((x[image] == token).all(1).nonzero()) for token in given[image, 1:]] for image in range(3)]
    assert all(row == sorted(set(row)) for row in found)


def test_merging_joins_the_most_similar_pairs_into_their_weighed_average() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, tokens = torch.randn(1, 7, 4, generator=generator), torch.randn(1, 7, 3, generator=generator)
    sizes = torch.tensor([1.0, 2, 1, 3, 1, 1, 2])[None, :, None]
    likeness = {
        (a, b): float(F.cosine_similarity(keys[0, a], keys[0, b], dim=0)) for a in (0, 2, 4, 6) for b in (1, 3, 5)
    }
    best = {a: max((1, 3, 5), key=lambda b, a=a: likeness[a, b]) for a in (0, 2, 4, 6)}
    going = sorted(best, key=lambda a: -likeness[a, best[a]])[:2]
    expected, weights = [], []
    for place in range(7):
        joined = [place, *(a for a in going if best[a] == place)]
        if place not in going:
            weights.append(sum(sizes[0, each] for each in joined))
            expected.append(sum(tokens[0, each] * sizes[0, each] for each in joined) / weights[-1])
    merged, sums = merged_by_likeness(keys, tokens, sizes, 5)
    assert torch.allclose(merged[0], torch.stack(expected), atol=1e-6)
    assert torch.equal(sums[0], torch.stack(weights))


def test_more_than_half_of_the_tokens_can_be_merged_and_none_is_lost() -> None:
    model = staged(vit(), {1: 10}, "merge")
    image = torch.randn(2, 64, 32)
    with torch.no_grad():
        merged, sizes = model.blocks._merged(model.blocks[1], image, torch.ones(2, 64, 1), 64, 10)
    assert merged.shape == (2, 10, 32) and sizes.sum(1).flatten().tolist() == [64, 64]
    assert torch.allclose((merged * sizes).sum(1), image.sum(1), atol=1e-4)


def test_registers_stay_and_without_a_class_token_the_mean_asks() -> None:
    model = vit(class_token=False, reg_tokens=2, global_pool="avg")
    small = Tokens(tokens=64, left={2: 8}).apply(copy.deepcopy(model), IMAGES[:1]).eval()
    given, x = coming_in(small, IMAGES)[2], coming_in(model, IMAGES)[2]
    assert given.shape[1] == 10 and torch.equal(given[:, :2], x[:, :2])
    image = x[:, 2:]
    normed, block = model.blocks[2].norm1, model.blocks[2]
    q = block.attn.qkv(normed(image.mean(1, keepdim=True)))[..., :32].reshape(3, 1, 2, 16).transpose(1, 2)
    k = block.attn.qkv(normed(image))[..., 32:64].reshape(3, 64, 2, 16).transpose(1, 2)
    places = (q @ k.transpose(-2, -1) / 4).softmax(-1).mean(1)[:, 0].topk(8).indices.sort().values
    assert torch.equal(given[:, 2:], torch.stack([image[i, places[i]] for i in range(3)]))


def test_torchvision_transformers_are_taken_too() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(32, 4, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5).eval()
    small = Tokens(tokens=64, left={1: 16}).apply(copy.deepcopy(model), IMAGES[:1])
    assert small(IMAGES).shape == (3, 5)
    assert torch.equal(Tokens(tokens=64, left={1: 64}).apply(copy.deepcopy(model), IMAGES[:1])(IMAGES), model(IMAGES))


def macs_by_hand(tokens: list[int], d: int = 32, hidden: int = 128) -> int:
    """Return the MACs of one image: patches, blocks with so many tokens, head."""
    blocks = sum(n * (4 * d * d + 2 * d * hidden) + 2 * n * n * d for n in tokens)
    return 64 * 48 * d + blocks + 5 * d


def test_counted_macs_are_those_of_the_tokens_that_are_there() -> None:
    model = vit()
    assert count_macs(model, IMAGES) == macs_by_hand([65] * 4)
    ranking = sum(d_q + n * 32 * 32 + n * 32 for d_q, n in [(32 * 32, 64), (32 * 32, 32)])  # query, keys, scores
    assert count_macs(staged(model, {1: 32, 3: 16}), IMAGES) == macs_by_hand([65, 33, 33, 17]) + ranking


@pytest.mark.parametrize("mode", ["drop", "merge"])
def test_a_bundle_with_fewer_tokens_is_saved_and_opened_as_it_is(mode: str, tmp_path: Path) -> None:
    dense = bundle(vit(), **TINY)
    before = dense.costs()
    small, details = prune_bundle(dense, TokensConfig(kind="tokens", keep=0.6, mode=mode), AROUND)
    assert details["tokens"] == [64, 38, 23, 13] and details["before_blocks"] == [1, 2, 3]
    assert small.costs()["params"] == before["params"] and small.costs()["macs"] < 0.65 * before["macs"]
    assert details["predicted"]["macs"] == [before["macs"], small.costs()["macs"]]
    small.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle")
    assert torch.equal(again.model(IMAGES), small.model(IMAGES))
    with pytest.raises(InputError, match="kind: tokens acts once"):
        check_pruning(again, TokensConfig(kind="tokens"))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("mode", ["drop", "merge"])
def test_the_exported_graph_computes_the_same_with_tokens_of_fixed_number(
    mode: str, exporter: str, tmp_path: Path
) -> None:
    model = staged(vit(depth=2), {1: 20}, mode)
    task = DEFAULT.bind(5, (3, 32, 32))
    result = export(model, IMAGES[:2], tmp_path / "model.onnx", ExportConfig(exporter=exporter), task)
    assert result.parity_max_rel <= 1e-4 and result.checked_batches == (1, 2, 3)
    graph = onnx.shape_inference.infer_shapes(onnx.load(result.path), data_prop=True).graph
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info}
    joined = [sizes[node.output[0]] for node in graph.node if node.op_type == "Softmax" and node.output[0] in sizes]
    assert [65, 65] in [shape[-2:] for shape in joined] and [21, 21] in [shape[-2:] for shape in joined]


def test_the_transform_keeps_to_the_rules_of_transforms() -> None:
    check_transform(Tokens(tokens=64, left={1: 30, 2: 20}), vit(), IMAGES[:1])
    with pytest.raises(InputError, match="the model has 64 image tokens, not 49"):
        Tokens(tokens=49, left={1: 30}).apply(vit(), IMAGES[:1])


def test_other_numbers_of_tokens_than_were_planned_are_refused() -> None:
    model = vit(dynamic_img_size=True)
    with pytest.raises(InputError, match="65 have to come in, not 145"):
        staged(model, {1: 30})(torch.randn(1, 3, 48, 48))


def test_models_whose_tokens_stand_in_a_grid_are_refused_in_one_sentence() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2]
    ).eval()
    with pytest.raises(InputError, match=r"tokens cannot leave SwinTransformer: .*windows"):
        check_pruning(bundle(swin), TokensConfig(kind="tokens"))
    with pytest.raises(InputError, match="no pre-norm transformer blocks in a row"):
        check_pruning(bundle(timm.create_model("resnet10t").eval()), TokensConfig(kind="tokens"))
    with pytest.raises(InputError, match=r"prune\.stages: there are only 4 blocks; got 5; allowed 2 to 4"):
        check_pruning(bundle(vit()), TokensConfig(kind="tokens", stages=5))


def test_stages_of_tokens_are_not_taken_apart_and_do_not_come_once_paths_are_weighed() -> None:
    small = bundle(staged(vit(), {1: 30}))
    macs = small.costs()["macs"]
    with pytest.raises(InputError, match=r"prune: tokens leave this model already; .* no sum of paths any more"):
        prune_bundle(small, PathsConfig(kind="paths", drop=0, scale="none"), AROUND)
    assert count_macs(small.model, IMAGES) == macs
    for again in (Paths(row="blocks"), Tokens(tokens=64, left={2: 10})):
        with pytest.raises(InputError, match="tokens leave this model already"):
            again.apply(small.model, IMAGES[:1])
    weighed = bundle(Paths(row="blocks").apply(vit(), IMAGES[:1]))
    with pytest.raises(InputError, match=r"prune: the paths of this model are weighed already; .* tokens cannot leave"):
        check_pruning(weighed, TokensConfig(kind="tokens"))


class Skipping(nn.Sequential):
    """Blocks of which the first is passed over."""

    def forward(self, x: Tensor) -> Tensor:
        for block in list(self)[1:]:
            x = block(x)
        return x


def test_blocks_in_a_container_with_a_way_of_its_own_are_not_taken_out_of_it() -> None:
    model = vit()
    model.blocks = Skipping(*model.blocks)
    for transform in (Paths(row="blocks"), Tokens(tokens=64, left={2: 10})):
        with pytest.raises(InputError, match=r"blocks \(Skipping\) does more than run its blocks one after another"):
            transform.apply(model, IMAGES[:1])


class Placed(nn.Module):
    """An attention that favours neighbours in the row."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.inner = attention

    def forward(self, x: Tensor, **_: object) -> Tensor:
        return self.inner(x) + x.roll(1, 1)


def test_blocks_that_go_by_the_place_in_the_row_are_refused() -> None:
    model = vit()
    model.blocks[1].attn = Placed(model.blocks[1].attn)
    with pytest.raises(InputError, match="tell tokens apart by their place in the row"):
        token_row(model, IMAGES[:1])


def test_tokens_learn_through_what_stays() -> None:
    model = staged(vit(), {1: 32, 2: 16}).train()
    model(IMAGES).square().sum().backward()
    assert isinstance(model.blocks, TokenStages)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
