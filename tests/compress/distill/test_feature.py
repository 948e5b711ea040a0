"""The loss of hidden layers: which are compared, how maps and tokens meet on one grid, and what trains."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from tiny_training import tiny_data
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.distill.finetune import DistillStageConfig
from compress.distill.layers import Watched
from compress.distill.losses import Guide, Sides
from compress.distill.losses.feature import FeatureConfig, FeatureLoss, distance
from compress.distill.matching import layouts, spread
from compress.testing.losses import check_loss
from compress.training.step import StepContext
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT

TASK = DEFAULT.bind(4, (3, 16, 16))
HEAD = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
BATCH = Batch(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(2))


def seeded(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def vit(width: int = 16, patch: int = 4, **more: Any) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": patch, "embed_dim": width, "depth": 2, "num_heads": 2, "num_classes": 4}
    return seeded(lambda: timm.models.VisionTransformer(**sizes, **more))  # type: ignore[no-any-return]


def swin(width: int = 8, depth: int = 2) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": width, "num_heads": (2, 2)}
    return seeded(lambda: timm.models.SwinTransformer(**sizes, depths=(depth, 2), num_classes=4))  # type: ignore[no-any-return]


def convolutional(width: int, stride: int = 1) -> nn.Module:
    layers = [nn.Conv2d(3, width, 3, stride, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(width, 4)))  # type: ignore[no-any-return]


def both(student: nn.Module, guide: nn.Module, layers: dict[str, str], **more: Any) -> tuple[FeatureLoss, Tensor]:
    config = FeatureConfig(layers=layers, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        term = config.make(Sides(student, [Guide("big", guide)], TASK, lambda: BATCH))
    assert isinstance(term, FeatureLoss)
    seen = Watched(student, term.student_layers, TASK).see(lambda: student(BATCH.inputs))
    with torch.no_grad():
        taught = Watched(guide, term.teacher_layers["big"], TASK).see(lambda: guide(BATCH.inputs))
    return term, term(seen, {"big": taught}, BATCH, 0).detach()


def test_maps_meet_on_the_smaller_grid_behind_a_projector() -> None:
    student, teacher = convolutional(6, stride=4), convolutional(10)
    term, loss = both(student, teacher, {"0": "0"}, normalize=False, weight=3)
    ours, theirs = (model[0](BATCH.inputs) for model in (student, teacher))  # type: ignore[index]
    projector = term.projectors[0]
    assert isinstance(projector, nn.Linear)
    projected = F.conv2d(ours, projector.weight[:, :, None, None], projector.bias)
    assert float(loss) == pytest.approx(
        3 * float((projected - F.avg_pool2d(theirs, 4)).square().mean().detach()), rel=1e-5
    )


def test_tokens_are_compared_as_they_stand_or_without_their_class_token() -> None:
    student, teacher = vit(), vit(class_token=False, global_pool="avg", patch=2)
    _, loss = both(student, teacher, {"blocks.1": "blocks.1"}, normalize=False)
    ours, theirs = (model.forward_intermediates(BATCH.inputs, norm=False)[1][1] for model in (student, teacher))  # type: ignore[operator]
    assert ours.shape == (2, 16, 4, 4) and theirs.shape == (2, 16, 8, 8)
    assert float(loss) == pytest.approx(float((ours - F.avg_pool2d(theirs, 2)).square().mean().detach()), rel=1e-5)
    _, whole = both(student, vit(init_values=1.0), {"blocks.1": "blocks.1"}, normalize=False, distance="cosine")
    assert float(whole) == pytest.approx(0.0, abs=1e-3)


def test_a_swin_transformer_learns_from_a_convolutional_network_and_it_from_a_vector() -> None:
    model, teacher = swin(), convolutional(10, stride=2)
    term, loss = both(model, teacher, {"layers.0": "0"}, normalize=False, distance="cosine")
    ours = term.projectors[0](model.forward_intermediates(BATCH.inputs)[1][0].permute(0, 2, 3, 1))  # type: ignore[operator]
    theirs = teacher[0](BATCH.inputs).permute(0, 2, 3, 1)  # type: ignore[index]
    expected = 1 - F.cosine_similarity(ours, theirs, dim=3).mean().detach()
    assert ours.shape == (2, 8, 8, 10) and float(loss) == pytest.approx(float(expected), rel=1e-4)
    _, pooled = both(convolutional(10, stride=2), swin(16), {"1": "norm"}, projector="linear", normalize=False)
    assert torch.isfinite(pooled)


@pytest.mark.parametrize(
    ("model", "layer", "expected"),
    [
        (swin(), "layers.0", (3, 8, (8, 8))),  # as many channels as rows: the layers tell
        (swin(), "layers.1.blocks.0.mlp", (2, 16, (4, 4))),
        (convolutional(16), "0", (1, 16, (16, 16))),
        (convolutional(5), "3", (1, 5, (1, 1))),
        (nn.Sequential(nn.Conv2d(3, 4, 4, 4), ConvNeXtBlock(4), *HEAD), "1", (1, 4, (4, 4))),
        (vit(8, dynamic_img_size=False), "blocks.0", (2, 8, (4, 4))),
    ],
)  # fmt: skip
def test_the_channels_of_a_layer_are_found(model: nn.Module, layer: str, expected: tuple[Any, ...]) -> None:
    layout = layouts(Sides(model, [], TASK, lambda: BATCH), model, [layer], "the model")[layer]
    assert (layout.axis, layout.width, layout.grid) == expected


def test_normalised_distances_do_not_see_scale_and_shift() -> None:
    student, teacher = torch.randn(2, 2, 3, 16, generator=torch.Generator().manual_seed(1))
    for kind in ("mse", "cosine"):
        plain = distance(student, teacher, kind, True)  # type: ignore[arg-type]
        moved = distance(student, 5 * teacher + 2, kind, True)  # type: ignore[arg-type]
        assert float(moved) == pytest.approx(float(plain), rel=1e-4)
        assert float(distance(teacher, 5 * teacher + 2, kind, True)) == pytest.approx(0, abs=1e-5)  # type: ignore[arg-type]
    assert float(distance(student, teacher, "mse", False)) == float((student - teacher).square().mean())


def test_layers_of_another_number_are_paired_as_far_along() -> None:
    assert spread(5, 9) == [0, 2, 4, 6, 8] and spread(1, 9) == [8] and spread(4, 2) == [0, 0, 1, 1]
    term, _ = both(swin(), swin(depth=6), {"layers.0.blocks.?": "layers.0.blocks.?"})
    assert [(pair.student[-1], pair.teacher[-1]) for pair in term.pairs] == [("0", "0"), ("1", "5")]
    assert all(isinstance(each, nn.Identity) for each in term.projectors)


def test_what_cannot_be_compared_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"feature\.layers: no layer of teacher big matches 'blocks\.9'"):
        both(vit(), vit(), {"blocks.0": "blocks.9"})
    with pytest.raises(InputError, match=r"feature\.layers: no layer of the model matches '9'"):
        both(convolutional(4), vit(), {"9": "blocks.0"})
    with pytest.raises(
        InputError, match=r"layer layers\.0\.blocks\.0\.attn of the model gives \(8, 16, 8\) for two samp"
    ):
        both(swin(), vit(), {"layers.0.blocks.0.attn": "blocks.0"})
    with pytest.raises(InputError, match=r"feature\.teacher: unknown teacher 'small'; allowed: big"):
        both(vit(), vit(), {"blocks.0": "blocks.0"}, teacher="small")
    odd = nn.Sequential(nn.Flatten(2), nn.Linear(256, 7), nn.Flatten(), nn.Linear(21, 4))
    said = (
        r"layer 1 of the model gives \(3, 7\) for a sample and layer blocks\.0 of teacher big \(17, 16\), whose posit"
    )
    with pytest.raises(InputError, match=said):
        both(odd, vit(), {"1": "blocks.0"})


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_projectors_train_at_any_precision_and_layout(precision: str) -> None:
    layers = {"loss": "feature", "layers": {"0": "0"}}
    config = DistillStageConfig(epochs=1, loss=layers, precision=precision, channels_last=True)
    step = config.make_step(StepContext(config, tiny_data(), convolutional(10)), seed=0)
    it = Updater(convolutional(6), step, config, device="cpu", seed=0, batches=6)
    before = {name: each.clone() for name, each in step.named_parameters()}
    first, *_, last = [float(it.update(batch, number)) for number in range(8) for batch in tiny_data().train.epoch(0)]
    assert last < first
    assert all(not torch.equal(before[name], each) for name, each in step.named_parameters()) and before


def test_it_is_what_distillation_relies_on() -> None:
    check_loss(FeatureConfig(layers={"0": "0", "2": "2"}, projector="linear"))
