"""A transformer's features as a sum of paths: exact, weighed, pruned, and taught by themselves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_training import TinyLoader
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.core.errors import InputError
from compress.distill.self_distilled import SelfDistilledConfig
from compress.export.exporters import ExportConfig, LatencyConfig, export
from compress.prune.kinds import Surroundings, check_pruning, prune_bundle
from compress.prune.kinds.paths import PathsConfig
from compress.testing.transforms import check_transform
from compress.training.config import TrainConfig
from compress.training.engine import Engine
from compress.training.fit import fit
from compress.training.optimizer import make_optimizer
from compress.training.step import StepContext, TrainingStep
from compress.transforms.paths import PathEnsemble, Paths, ensemble_of
from compress.transforms.pre_norm import branches
from compress.transforms.tokens import Tokens
from evaluators.cost import count_macs, count_params
from evaluators.datasets import Data, Preprocessing
from evaluators.datasets.batch import Batch
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig

TINY: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TASK = DEFAULT.bind(4, (3, 8, 8))


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY, "num_classes": 4, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def data() -> Data:
    preprocessing = Preprocessing.of_model({}, (3, 8, 8))
    return Data(TASK, preprocessing, TinyLoader(64, 16), TinyLoader(40, 20, seed=1), list("abcd"))


def bundle(model: nn.Module) -> Bundle:
    config = ModelConfig(source="timm", name="vit_tiny_patch16_224", kwargs={**TINY, "num_classes": 4})
    return Bundle(model, config, TASK, Preprocessing.of_model({}, (3, 8, 8)))


def weighed(model: nn.Module, images: Tensor = IMAGES, row: str = "blocks", **options: Any) -> nn.Module:
    return Paths(row=row, **options).apply(copy.deepcopy(model), images[:1]).eval()


def paths_by_hand(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return P_0, A_1, F_1, A_2, ... of timm's transformer, by its own parts."""
    x = model._pos_embed(model.patch_embed(images))
    found = [x]
    for block in model.blocks:
        found.append(block.ls1(block.attn(block.norm1(x))))
        x = x + found[-1]
        found.append(block.ls2(block.mlp(block.norm2(x))))
        x = x + found[-1]
    return found


def logits_of(model: nn.Module, features: Tensor) -> Tensor:
    return model.forward_head(model.norm(features))


@pytest.mark.parametrize("scale", ["none", "scalar", "channel"])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"class_token": False, "global_pool": "avg"}])
def test_with_all_paths_and_factors_of_one_nothing_changes(scale: str, separate: bool, options: dict[str, Any]) -> None:
    model = vit(**options)
    assert torch.allclose(weighed(model, scale=scale, separate=separate)(IMAGES), model(IMAGES), atol=1e-5)


def test_the_last_stage_of_swin_is_a_sum_of_paths() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=[1, 2], num_heads=[1, 2]
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    small = weighed(model, images, "layers.1.blocks", scale="channel")
    assert torch.allclose(small(images), model(images), atol=1e-5)
    assert count_params(small)[0] - count_params(model)[0] == 5 * 32
    assert not torch.allclose(weighed(model, images, "layers.1.blocks", left_out=[1])(images), model(images), atol=1e-4)


def test_factors_cost_what_is_published_and_the_rest_stays_as_it_is() -> None:
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224")
        assert count_params(model)[0] == 22_050_664
        counts = {(True, "channel"): 9_600, (False, "channel"): 4_992, (True, "scalar"): 25, (False, "scalar"): 13}
        for (separate, scale), more in counts.items():
            counted = PathEnsemble(list(model.blocks), model.embed_dim, separate=separate, scale=scale)
            assert sum(parameter.numel() for parameter in counted.scales.parameters()) == more


def test_both_forms_of_path_pruning_and_factors_of_nought_and_one_agree() -> None:
    model, images = vit().double(), IMAGES.double()
    left_out = [0, 1, 2, 5]
    paths = paths_by_hand(model, images)
    kept = logits_of(model, sum(path for number, path in enumerate(paths) if number not in left_out))
    taken_off = logits_of(model, sum(paths) - sum(paths[number] for number in left_out))
    assert (kept - taken_off).abs().max() < 1e-12
    pruned = weighed(model, images, left_out=left_out)
    assert (pruned(images) - kept).abs().max() < 1e-12
    scaled = weighed(model, images, scale="channel").double()
    with torch.no_grad():
        for number in left_out:
            ensemble_of(scaled).scales[str(number)].zero_()
    assert (scaled(images) - kept).abs().max() < 1e-12
    assert count_macs(pruned, images) == count_macs(model, images)
    assert count_params(pruned) == count_params(model)


def test_paths_of_whole_blocks_are_attention_and_mlp_together() -> None:
    model = vit().double()
    paths = paths_by_hand(model, IMAGES.double())
    kept = logits_of(model, sum(paths) - paths[0] - paths[1] - paths[2])
    assert torch.allclose(weighed(model, IMAGES.double(), left_out=[0, 1], separate=False)(IMAGES.double()), kept)


def test_factors_do_not_decay() -> None:
    model = weighed(vit(), scale="channel")
    optimizer = make_optimizer(TrainConfig(weight_decay=0.05), model, TrainingStep())
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    scales = list(ensemble_of(model).scales.parameters())
    assert len(scales) == 9 and not any(id(scale) in decaying for scale in scales)
    assert any(id(p) in decaying for p in model.parameters())


def test_short_sums_learn_from_the_whole_one() -> None:
    model = weighed(vit(), scale="channel", left_out=[1]).double().train()
    with torch.no_grad():
        for number, factor in enumerate(ensemble_of(model).scales.values()):
            factor.fill_(1 + 0.1 * number)
    factors = {int(path): factor[0].item() for path, factor in ensemble_of(model).scales.items()}
    step = SelfDistilledConfig(weight=0.7, temperature=3.0).make(StepContext(TrainConfig(), data()))
    step.prepare(model, Engine("cpu"))
    labels = torch.tensor([0, 1, 2])
    loss = step.loss(model, Batch(IMAGES.double(), labels), 0)
    paths = [factors.get(i, 0.0) * path for i, path in enumerate(paths_by_hand(plain(model), IMAGES.double()))]
    whole, half, most = (logits_of(model, sum(paths[:count])) for count in (9, 5, 7))
    target = (whole.detach() / 3).softmax(1)
    terms = [9 * (target * (target.log() - F.log_softmax(each / 3, 1))).sum(1).mean() for each in (half, most)]
    assert loss.item() == pytest.approx((F.cross_entropy(whole, labels) + 0.7 * sum(terms) / 2).item(), rel=1e-6)
    assert model(IMAGES.double()).shape == (3, 4)  # afterwards it gives the whole prediction alone


def plain(model: nn.Module) -> nn.Module:
    """Return the transformer whose blocks a sum of paths has taken over."""
    dense = vit().double()
    weights = {name: value for name, value in model.state_dict().items() if ".scales." not in name}
    dense.load_state_dict(weights)
    return dense


def test_a_plain_transformer_teaches_itself_as_one_with_its_paths_summed() -> None:
    config = TrainConfig(epochs=2, lr=1e-3, step=SelfDistilledConfig())
    plain_one, summed = vit(), weighed(vit())
    names = [name for name, _ in plain_one.named_modules()]
    for model in (plain_one, summed):
        fit(model, data(), config)
    assert [name for name, _ in plain_one.named_modules()] == names
    assert torch.allclose(plain_one(IMAGES), summed(IMAGES), atol=1e-6)
    with pytest.raises(InputError, match="step path_ensemble: the model has no pre-norm transformer blocks"):
        fit(timm.create_model("resnet10t", num_classes=4), data(), config)
    staged = Tokens(tokens=16, left={1: 8}).apply(vit(), IMAGES[:1])
    with pytest.raises(InputError, match="step path_ensemble: tokens leave this model already"):
        fit(staged, data(), config)


def test_the_paths_that_do_not_help_leave_one_by_one(tmp_path: Path) -> None:
    model = vit()
    with torch.no_grad():  # the embedding and the first attention drown the others
        model.pos_embed.normal_(std=0.01)
    fit(model, data(), TrainConfig(epochs=3, lr=3e-3))
    around = Surroundings(data(), "cpu", 0, LatencyConfig(), ExportConfig())
    dense = bundle(copy.deepcopy(model))
    small, details = prune_bundle(dense, PathsConfig(kind="paths", drop="auto", scale="none"), around)
    assert "test images" in details["notes"][-1]
    values = [row["value"] for row in details["judged"]]
    count = len(details["left_out"])
    assert details["left_out"] == list(range(count)) and values[: count + 1] == sorted(values[: count + 1])
    assert len(values) in (count + 1, count + 2) and (len(values) == count + 1 or values[-1] < values[-2])
    images = data().test.images
    with torch.no_grad():
        expected = logits_of(model, sum(paths_by_hand(model, images)[count:]))
        right = (expected.argmax(1) == data().test.labels).float().mean() * 100
        assert torch.allclose(small.model(images), expected, atol=1e-4) and values[count] == pytest.approx(float(right))
    small.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle")
    assert torch.equal(again.model(IMAGES), small.model(IMAGES))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_exported_graph_computes_the_same(exporter: str, tmp_path: Path) -> None:
    model = weighed(vit(depth=2), left_out=[1], scale="channel")
    with torch.no_grad():
        for factor in ensemble_of(model).scales.values():
            factor.normal_()
    result = export(model, IMAGES[:2], tmp_path / "model.onnx", ExportConfig(exporter=exporter), TASK)
    assert result.parity_max_rel <= 1e-4


def test_the_transform_keeps_to_the_rules_of_transforms() -> None:
    check_transform(Paths(row="blocks", left_out=[0, 3], scale="channel"), vit(), IMAGES[:1])


def test_what_cannot_be_done_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"prune\.drop: there are 9 paths; got 9; allowed 0 to 8"):
        check_pruning(bundle(vit()), PathsConfig(kind="paths", drop=9))
    with pytest.raises(InputError, match="kind: paths acts once"):
        check_pruning(bundle(weighed(vit())), PathsConfig(kind="paths"))
    with pytest.raises(InputError, match="no pre-norm transformer blocks in a row"):
        check_pruning(bundle(timm.create_model("resnet10t")), PathsConfig(kind="paths"))
    swin2 = timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2]
    )
    small = bundle(swin2)
    small = Bundle(swin2, small.base, small.task, Preprocessing.of_model({}, (3, 32, 32)))
    with pytest.raises(InputError, match="no pre-norm transformer blocks in a row"):
        check_pruning(small, PathsConfig(kind="paths"))


def test_stochastic_depth_is_part_of_a_path() -> None:
    block = vit(drop_path_rate=0.5).blocks[-1].train()
    torch.manual_seed(0)
    attended, _ = branches(block, torch.randn(64, 17, 16))
    dropped = (attended == 0).all(-1).all(-1)
    assert 0 < int(dropped.sum()) < 64
