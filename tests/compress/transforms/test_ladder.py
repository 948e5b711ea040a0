"""Ladder side-tuning: the backbone stays, its activations are not kept, and every rung does as specified."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_training import TinyLoader
from torch import Tensor, nn

from compress.bundle import Bundle
from compress.core.batch_norm import norm_layers
from compress.core.errors import InputError
from compress.export.exporters import ExportConfig, export
from compress.graph.known import Known
from compress.prune.side import side_plan
from compress.prune.structure import Setting
from compress.prune.structure_config import StructureConfig
from compress.runs.stages.ladder import Ladder as LadderStage
from compress.runs.stages.ladder import LadderConfig, _beside, _transform
from compress.testing.transforms import check_transform
from compress.training.config import TrainConfig
from compress.training.fit import fit
from compress.training.optimizer import make_optimizer
from compress.training.step import TrainingStep
from compress.transforms.chain import longest_chain
from compress.transforms.ladder import Ladder, LadderTransform, Rung
from compress.transforms.paths import Paths
from evaluators.datasets import Data, Preprocessing
from evaluators.tasks import DEFAULT
from spaces.zoo import ModelConfig

TASK = DEFAULT.bind(4, (3, 8, 8))
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
VIT: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 4}
SWIN: dict[str, Any] = {
    "img_size": 8, "patch_size": 1, "window_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2],
    "num_classes": 4,
}  # fmt: skip
RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "num_classes": 4}
KINDS = {"vit": ("vit_tiny_patch16_224", VIT), "swin": ("swin_tiny_patch4_window7_224", SWIN)}
KINDS["resnet"] = ("resnet18", RESNET)


def made(kind: str, **more: Any) -> nn.Module:
    name, options = KINDS[kind]
    torch.manual_seed(0)
    return timm.create_model(name, **{**options, **more}).eval()


def transform_of(model: nn.Module, images: Tensor = IMAGES, reduction: int = 4) -> LadderTransform:
    config = StructureConfig.model_validate({"kind": "structure", "criterion": "magnitude", "ratio": 0.5})
    graph = Known().graph(model, images[:1])
    return LadderTransform(plan=side_plan(model, graph, images[:1], reduction, config, Setting()))


def laddered(model: nn.Module, images: Tensor = IMAGES, reduction: int = 4) -> Ladder:
    found = transform_of(model, images, reduction).apply(copy.deepcopy(model), images[:1])
    assert isinstance(found, Ladder)
    return found.eval()


def data() -> Data:
    preprocessing = Preprocessing.of_model({}, (3, 8, 8))
    return Data(TASK, preprocessing, TinyLoader(64, 16), TinyLoader(40, 20, seed=1), list("abcd"))


def bundle(kind: str) -> Bundle:
    name, options = KINDS[kind]
    config = ModelConfig(source="timm", name=name, kwargs=options)
    return Bundle(made(kind), config, TASK, Preprocessing.of_model({}, (3, 8, 8)))


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a training pass keeps for its gradients, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(images)
    del out
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_the_side_network_alone(kind: str) -> None:
    ladder = laddered(made(kind))
    before = copy.deepcopy(ladder)
    norms = norm_layers(ladder)
    fit(ladder, data(), TrainConfig(epochs=2, lr=1e-2, bn_recalibrate=2))
    after, old = ladder.state_dict(), before.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in old.items() if name.startswith("backbone."))
    changed = [name for name, value in old.items() if not torch.equal(value, after[name])]
    assert {name.split(".")[0] for name in changed} == {"rungs", "down", "up"}
    assert not any(norm in list(ladder.backbone.modules()) for norm in norms)
    assert bool(norms) is (kind == "resnet")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_part_beside_the_backbone_and_none_in_it(kind: str) -> None:
    ladder = laddered(made(kind)).train()
    ladder(IMAGES).square().sum().backward()
    assert all(parameter.grad is None for parameter in ladder.backbone.parameters())
    assert all(p.grad is not None for n, p in ladder.named_parameters() if not n.startswith("backbone."))
    assert not any(module.training for module in ladder.backbone.modules())
    assert torch.is_grad_enabled()


def test_gates_start_at_a_half_and_do_not_decay() -> None:
    ladder = laddered(made("swin"))
    rungs = [rung for rung in ladder.rungs if rung.alpha is not None]
    assert len(rungs) == 3 and all(float(rung.gate.detach()) == 0.5 for rung in rungs)
    with torch.no_grad():
        rungs[0].alpha.fill_(0.1)
    assert float(rungs[0].gate.detach()) == pytest.approx(1 / (1 + 2.718281828**-1))
    optimizer = make_optimizer(TrainConfig(weight_decay=0.05), ladder, TrainingStep())
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decaying and not any(id(rung.alpha) in decaying for rung in rungs)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in learning for p in ladder.backbone.parameters())


def test_less_than_two_fifths_of_the_activations_are_kept() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=4).eval()
    images = torch.randn(2, 3, 224, 224)
    ladder = laddered(model, images)
    assert saved_bytes(ladder.train(), images) < 0.4 * saved_bytes(model.train(), images)


def test_the_blocks_that_a_side_network_listens_to_are_not_taken_away() -> None:
    with pytest.raises(InputError, match="a side network takes the features of this model's blocks"):
        Paths(row="backbone.blocks").apply(laddered(made("vit")), IMAGES[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_with_gates_of_one_the_ladder_is_cut(kind: str) -> None:
    ladder = laddered(made(kind))
    with torch.no_grad():
        for rung in ladder.rungs:
            if rung.alpha is not None:
                rung.alpha.fill_(1e3)
        cut = ladder(IMAGES)
        for name, parameter in ladder.backbone.named_parameters():
            if any(name.startswith(f"{tap}.") for tap in ladder.taps):
                parameter.add_(1.0)
        assert torch.equal(ladder(IMAGES), cut)
        for rung in ladder.rungs:
            if rung.alpha is not None:
                rung.alpha.zero_()
        assert not torch.allclose(ladder(IMAGES), cut, atol=1e-3)


def test_with_gates_of_nought_and_the_identity_a_block_receives_what_the_backbones_gave() -> None:
    model = made("vit")
    rungs = {}
    for name in ("blocks.0", "blocks.1", "blocks.2"):
        rungs[name] = Rung(copy.deepcopy(model.get_submodule(name)), identity(32), before=True)
        nn.init.constant_(rungs[name].alpha, -1e3)
    ladder = Ladder(model, rungs, "blocks.0", identity(32), identity(32)).eval()
    given: list[Tensor] = []
    seen: list[Tensor] = []
    for place in range(3):
        model.blocks[place].register_forward_hook(lambda *args: given.append(args[2]))
        ladder.rungs[place].block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        ladder(IMAGES)
    assert all(torch.equal(one, other) for one, other in zip(given, seen, strict=True)) and len(seen) == 3


def identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_the_side_network_is_the_narrow_model_on_one_set_of_channels() -> None:
    model = made("vit")
    transform = transform_of(model)
    ladder = laddered(model)
    kept = torch.tensor(transform.plan.kept["norm.weight"][0])
    assert len(kept) == 8
    block = ladder.rungs[1].block
    assert block.attn.qkv.weight.shape == (3 * 2 * 4, 8) and block.mlp.fc1.weight.shape == (32, 8)
    assert torch.equal(block.norm1.bias, model.blocks[1].norm1.bias[kept])
    rows = torch.tensor(transform.plan.kept["blocks.1.mlp.fc1.weight"][0])
    assert torch.equal(block.mlp.fc1.weight, model.blocks[1].mlp.fc1.weight[rows][:, kept])
    picks = torch.eye(32)[kept]
    assert torch.equal(ladder.down.weight, picks) and torch.equal(ladder.up.weight, picks.T)
    assert all(torch.equal(rung.down.weight, picks) for rung in ladder.rungs if rung.down is not None)
    x = model._pos_embed(model.patch_embed(IMAGES))
    with torch.no_grad():
        z, h = ladder.down(x), x
        for place in range(3):
            h = model.blocks[place](h)
            z = ladder.rungs[place].block(0.5 * z + 0.5 * ladder.rungs[place].down(h))
        expected = model.forward_head(ladder.up(ladder.rungs[3].block(z)))
        assert torch.allclose(ladder(IMAGES), expected, atol=1e-6)


def test_beside_a_cnn_every_stage_is_a_rung() -> None:
    model = made("resnet")
    ladder = laddered(model)
    assert ladder.first == "layer1.0" and ladder.taps == ("layer1.0", "layer2.0", "layer3.0", "layer4.0")
    assert all(isinstance(rung.down, nn.Conv2d) and not rung.before for rung in ladder.rungs)
    with torch.no_grad():
        h = model.maxpool(model.act1(model.bn1(model.conv1(IMAGES))))
        z = ladder.down(h)
        for place, rung in enumerate(ladder.rungs, start=1):
            h = model.get_submodule(f"layer{place}")(h)
            z = 0.5 * rung.block(z) + 0.5 * rung.down(h)
        assert torch.allclose(ladder(IMAGES), model.fc(model.global_pool(ladder.up(z))), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_with_a_ladder_is_saved_opened_and_exported_as_it_is(kind: str, tmp_path: Path) -> None:
    dense = bundle(kind)
    head = {"vit": "head", "swin": "head.fc", "resnet": "fc"}[kind]
    dense.masks = {f"{head}.weight": torch.ones(4, 32, dtype=torch.bool)}
    before = dense.costs()
    ladder, notes = _beside(dense, _transform(dense, LadderConfig(), None, "cpu", 0))
    assert ladder.costs()["params"] > before["params"] and ladder.costs()["macs"] > before["macs"]
    assert "stays" in notes[1] and f"{before['params']:,} are frozen" in notes[0]
    fit(ladder.model, data(), TrainConfig(epochs=1, lr=1e-2), masks=ladder.masks)
    ladder.save(tmp_path / "bundle")
    again = Bundle.load(tmp_path / "bundle")
    with torch.no_grad():
        assert torch.equal(again.model(IMAGES), ladder.model(IMAGES))
    assert not any(parameter.requires_grad for parameter in again.model.backbone.parameters())
    result = export(again.model, IMAGES[:2], tmp_path / "model.onnx", ExportConfig(exporter="torchscript"), TASK)
    assert result.parity_max_rel <= 1e-4
    with pytest.raises(InputError, match="ladder: the model has a network beside it already"):
        LadderStage("ladder").check_model(LadderConfig(), again)


def test_the_other_exporter_writes_it_too(tmp_path: Path) -> None:
    ladder = laddered(made("vit", depth=1))
    result = export(ladder, IMAGES[:2], tmp_path / "model.onnx", ExportConfig(exporter="dynamo"), TASK)
    assert result.parity_max_rel <= 1e-4


def test_the_transform_keeps_to_the_rules_of_transforms() -> None:
    check_transform(transform_of(made("swin")), made("swin"), IMAGES[:1])


class Tangled(nn.Module):
    """Features meet in a sum of three ways, and never go through one layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(way(x) for way in self.ways).mean((2, 3)))  # type: ignore[attr-defined,no-any-return]


def test_a_model_whose_features_do_not_go_in_a_row_is_refused_in_one_sentence() -> None:
    other = Bundle(Tangled(), ModelConfig(name="x"), TASK, Preprocessing.of_model({}, (3, 8, 8)))
    with pytest.raises(InputError, match="ladder: no network can stand beside Tangled: "):
        LadderStage("ladder").check_model(LadderConfig(), other)


def test_a_chain_is_taken_apart_only_where_one_tensor_goes_through() -> None:
    names = [link.name for link in longest_chain(made("resnet"), IMAGES[:1])]
    assert names[:4] == ["conv1", "bn1", "act1", "maxpool"] and "layer2.0" in names  # a sum changes its tensor in place
    assert [link.name for link in longest_chain(made("vit"), IMAGES[:1])][-2:] == ["blocks.2", "norm"]
