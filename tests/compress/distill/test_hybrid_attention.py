"""What a correct attention distillation has to show: mutual information, loss, and scores that are the layers' own."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from tiny_training import tiny_data
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.attention import attention_loss, attentions, normalized_mutual_information, recomputed
from compress.distill.finetune import DistillStageConfig
from compress.distill.layers import Watched
from compress.distill.losses import Guide, Sides
from compress.distill.losses.hybrid_attention import HybridAttentionConfig, HybridAttentionLoss, measured
from compress.testing.losses import check_loss
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT

TASK = DEFAULT.bind(4, (3, 16, 16))
IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(width: int = 16, heads: int = 2, depth: int = 3, seed: int = 0, **more: Any) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": width, "num_classes": 4} | more
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _loud(timm.models.VisionTransformer(**sizes, depth=depth, num_heads=heads).eval())


def swin(seed: int = 0, window: int = 4, width: int = 8) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 2, "window_size": window, "embed_dim": width, "num_heads": (2, 2)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _loud(timm.models.SwinTransformer(**sizes, depths=(2, 2), num_classes=4).eval())


def _loud(model: nn.Module) -> nn.Module:
    """Make attention more than uniform: fresh weights are small."""
    for name, weight in model.named_parameters():
        if "qkv" in name or "bias_table" in name:
            nn.init.normal_(weight, std=0.7)
    return model


def sides(student: nn.Module, teacher: nn.Module, images: Tensor = IMAGES) -> Sides:
    batch = Batch(images, torch.arange(len(images)) % 4)
    parts = [batch.part(0, 7), batch.part(7, 12)]
    return Sides(student, [Guide("big", teacher)], TASK, lambda: batch.part(0, 2), 1, lambda: parts)


def made(student: nn.Module, teacher: nn.Module, **options: Any) -> HybridAttentionLoss:
    term = HybridAttentionConfig(**options).make(sides(student, teacher))
    assert isinstance(term, HybridAttentionLoss)
    return term


def nmi(attention: Tensor) -> float:
    return float(normalized_mutual_information(attention))


def test_mutual_information_is_that_of_the_published_table() -> None:
    places = torch.cartesian_prod(torch.arange(14.0), torch.arange(14.0))
    squared = torch.cdist(places, places).square()
    assert nmi(torch.eye(196)) == pytest.approx(1, abs=1e-5)
    assert nmi(torch.full((196, 196), 1 / 196)) == pytest.approx(0, abs=1e-5)
    assert nmi(torch.rand(196).softmax(0).expand(196, 196)) == pytest.approx(0, abs=1e-5)
    for sigma, expected in {0.5: 0.763, 1: 0.499, 2: 0.275, 3: 0.160, 4: 0.091, 6: 0.029}.items():
        assert nmi((-squared / (2 * sigma**2)).softmax(-1)) == pytest.approx(expected, abs=0.002)
    assert nmi(torch.eye(5)[:1].expand(5, 5)) == 0 and nmi(torch.ones(1, 1)) == 0
    both = torch.stack([torch.eye(4), torch.full((4, 4), 0.25)])
    assert normalized_mutual_information(both).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_equal_scores_have_no_loss_and_no_gradient() -> None:
    scores = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    for moved in (scores.clone(), scores + torch.arange(5.0)[:, None]):
        student = moved.requires_grad_()
        loss = attention_loss(student, scores)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        assert student.grad is not None and float(student.grad.abs().max()) < 1e-7
    other = scores.flip(0)
    p, q = other.softmax(-1), scores.softmax(-1)
    expected = (p * (p / q).log()).sum() / (2 * 3 * 5)
    assert float(attention_loss(scores, other)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["vit", "normed", "swin", "torchvision"])
def test_scores_are_those_that_the_layer_computes(kind: str, fused: bool) -> None:
    """Where a layer does not fuse, its softmax is seen by its dropout; a fused one gives the same features."""
    models = {"vit": vit, "normed": lambda: vit(qk_norm=True), "swin": swin, "torchvision": torch_vit}
    model = models[kind]()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    found = attentions(sides(model, model), model, None, "key", "the model")
    assert [each.windows for each in found] == ([4, 4, 1, 1] if kind == "swin" else [1] * len(found))
    assert [each.prefix for each in found] == ([0] * 4 if kind == "swin" else [1] * len(found))
    for each in found:
        seen = Watched(model, [each.name], TASK).see(lambda: model(IMAGES))
        probabilities: list[Tensor] = []
        if hasattr(each.layer, "attn_drop"):
            hook = partial(lambda found, _, args, __: found.append(args[0]), probabilities)
            handle = each.layer.attn_drop.register_forward_hook(hook)  # type: ignore[union-attr,operator]
            model(IMAGES)
            handle.remove()
        scores = each.scores(seen.received[each.name])
        assert tuple(scores.shape) == (12 * each.windows, *each.sizes)
        if not fused and probabilities:
            assert torch.allclose(scores.softmax(-1), probabilities[0], atol=1e-6)
        given = seen.features[each.name]
        given = given[0] if isinstance(given, tuple) else given
        assert torch.allclose(recomputed(each.layer, each.block, seen.received[each.name])[1], given, atol=1e-4)


def torch_vit() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=4).eval()


def test_the_layer_nearest_to_the_wanted_information_is_chosen_whatever_the_order_of_images() -> None:
    student, teacher = vit(8, seed=1), vit(depth=4)
    for place, block in enumerate(teacher.blocks):  # type: ignore[arg-type,var-annotated]
        with torch.no_grad():
            block.attn.qkv.weight.mul_(0.3 + 0.35 * place)
    term = made(student, teacher)
    assert term.ours.name == "blocks.2.attn" and list(term.measured) == [f"blocks.{n}.attn" for n in range(4)]
    values = [term.measured[name] for name in term.measured]
    assert values == sorted(values) and values[0] < 0.09 < values[-1]
    nearest = min(term.measured, key=lambda name: abs(term.measured[name] - 0.09))
    assert term.theirs.name == nearest
    assert made(student, teacher, nmi=1.0).theirs.name == "blocks.3.attn"
    turned = sides(student, teacher, IMAGES.flip(0))
    layers = attentions(turned, teacher, None, "", "")
    assert measured(turned, Guide("big", teacher), layers, 512) == pytest.approx(term.measured, abs=1e-6)
    layer = teacher.blocks[1].attn  # type: ignore[index,union-attr]
    layer.fused_attn = False
    layer.attn_drop.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    seen: list[Tensor] = []
    teacher(IMAGES)
    places = seen[0][..., 1:, 1:] / seen[0][..., 1:, 1:].sum(-1, keepdim=True)
    assert term.measured["blocks.1.attn"] == pytest.approx(nmi_of(places), abs=1e-5)


def nmi_of(attention: Tensor) -> float:
    """The definition, matrix by matrix."""
    values = []
    for matrix in attention.flatten(0, 1).double():
        count = len(matrix)
        keys = matrix.mean(0)
        information = (matrix / count * (matrix / keys).log()).nansum()
        values.append(float(information / math.sqrt(math.log(count) * float(-(keys * keys.log()).sum()))))
    return sum(values) / len(values)


def test_a_named_layer_needs_no_measuring_and_windows_need_a_name() -> None:
    assert made(vit(8), vit(), layers=["blocks.1"]).measured == {}
    with pytest.raises(
        InputError, match=r"teacher big looks at windows, where the published NMI of 0\.09 says nothing"
    ):
        made(swin(), swin(1), student_layer="layers.0.blocks.0")
    several = made(swin(), swin(1), student_layer="layers.0.blocks.0", nmi=0.2, images=3).measured
    assert list(several) == ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn"]  # those of as many windows
    term = made(swin(), swin(1, width=16), layers=["layers.0.blocks.1"], student_layer="layers.0.blocks.0")
    assert term.theirs.windows == 4


def test_heads_change_no_parameter_of_the_student() -> None:
    counts = {heads: sum(each.numel() for each in vit(16, heads).parameters()) for heads in (1, 4)}
    assert counts[1] == counts[4]


class Odd(nn.Module):
    """Attention with a temperature of its own."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.scale = layer.qkv, layer.proj, layer.num_heads, layer.scale

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        found: Tensor = self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return found


def test_what_has_no_maps_or_others_is_refused_in_a_sentence() -> None:
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    for ours, theirs, said in (
        (vit(), convolutional, "hybrid_attention.layers: teacher big has no attention layer, and so no attention maps"),
        (convolutional, vit(), "hybrid_attention.student_layer: the model has no attention layer"),
    ):
        with pytest.raises(InputError, match=said):
            made(ours, theirs)
    with pytest.raises(
        InputError, match=r"hybrid_attention\.layers: no attention layer of teacher big matches 'blocks\.7'"
    ):
        made(vit(), vit(), layers=["blocks.7"])
    said = r"layer blocks\.2\.attn of the model has 2 heads over 17 tokens, layer blocks\.0\.attn of teacher big 4 he"
    with pytest.raises(InputError, match=said):
        made(vit(), vit(heads=4), layers=["blocks.0"])
    with pytest.raises(InputError, match=r"big 2 heads over 16 tokens; heads and tokens have to be the same"):
        made(vit(), vit(class_token=False, global_pool="avg"), layers=["blocks.0"])
    with pytest.raises(InputError, match=r"2 heads over 4 tokens in 16 windows"):
        made(swin(), swin(window=2), layers=["layers.0.blocks.0"], student_layer="layers.0.blocks.0")
    odd = vit()
    odd.blocks[1].attn = Odd(odd.blocks[1].attn)  # type: ignore[index,union-attr,operator]
    with pytest.raises(
        InputError, match=r"layer blocks\.1\.attn of teacher big \(Odd\) has scores that cannot be recom"
    ):
        made(vit(), odd)
    rotary = timm.models.Eva(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=4, use_rot_pos_emb=True
    )
    nn.init.normal_(rotary.blocks[0].attn.qkv.weight)
    with pytest.raises(
        InputError, match=r"layer blocks\.0\.attn of teacher big \(EvaAttention\) has scores that cannot"
    ):
        made(vit(), rotary.eval())


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_smaller_transformer_comes_to_look_where_the_teacher_looks(precision: str) -> None:
    loss = {"loss": "hybrid_attention", "layers": ["blocks.1"], "labels": 0}
    config = DistillStageConfig(epochs=1, lr=0.01, warmup_epochs=0, loss=loss, precision=precision, channels_last=True)
    student, teacher = (vit(width, depth=2, img_size=8, patch_size=2) for width in (8, 16))
    step = config.make_step(StepContext(config, tiny_data(), teacher), seed=0)
    it = Updater(student, step, config, device="cpu", seed=0, batches=6)
    values = [float(it.update(batch, number)) for number in range(6) for batch in tiny_data().train.epoch(0)]
    assert values[-1] < 0.8 * values[0]
    assert all(each.grad is None for each in teacher.parameters())


def test_it_is_what_distillation_relies_on() -> None:
    config = HybridAttentionConfig(layers=["blocks.1"])
    check_loss(config, vit(8), vit(), Batch(IMAGES, torch.arange(12) % 4), TASK)
