"""Compensation of small untrained networks: what is refitted comes nearer to the dense model, nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import timm
import torch
from torch import Tensor, nn

from compress.graph.apply import apply
from compress.graph.graph import Graph
from compress.graph.known import Known
from compress.graph.plan import Plan, make_plan
from compress.graph.tracer import Limits
from compress.prune.compensation import targets
from compress.prune.compensation.compensate import Compensation, compensated
from compress.prune.compensation.norms import settle_norms
from compress.prune.compensation.statistics import DenseStatistics
from evaluators.datasets.batch import Batch
from evaluators.tasks import UNSIZED
from spaces.zoo import ModelConfig, build_model


def smooth_images(count: int, size: int, seed: int) -> list[Batch]:
    """Images whose neighbouring pixels and channels hang together, in batches of 16."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, size + 4, size + 4, generator=generator)
    images = nn.functional.avg_pool2d(noise, 5, 1) * 4 + torch.randn(count, 1, 1, 1, generator=generator)
    return [Batch(part, torch.zeros(len(part))) for part in images.split(24)]


CALIBRATION, OTHERS = smooth_images(48, 32, 0), smooth_images(24, 32, 1)


def varied(model: nn.Module) -> nn.Module:
    """Give norms and layer scales values as after training."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.data.add_(0.3 * torch.rand(tensor.shape, generator=generator))
        if "gamma" in name:
            tensor.data.fill_(0.7)
    return model.eval()


def resnet() -> nn.Module:
    model = varied(build_model(ModelConfig(source="builtin", name="cifar_resnet20")).module)
    settle_norms(model, CALIBRATION, UNSIZED.forward)
    return model


def halved(graph: Graph) -> dict[str, Tensor]:
    return {group.name: torch.arange(group.size - group.size // 2) for group in graph.groups}


def planned(model: nn.Module, dropped: tuple[str, ...] = (), only: str = "") -> tuple[Graph, Plan]:
    graph = Known().graph(model, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), Limits())
    kept = {name: units for name, units in halved(graph).items() if only in name}
    return graph, make_plan(model, graph, kept, dropped=dropped)


def distance(small: nn.Module, dense: nn.Module, batches: list[Batch] = OTHERS) -> float:
    with torch.no_grad():
        pairs = [(small(batch.inputs), dense(batch.inputs)) for batch in batches]
    ours, theirs = (torch.cat(each).double() for each in zip(*pairs, strict=True))
    return float((ours - theirs).square().mean() / theirs.var())


def checked(dense: nn.Module, plan: Plan) -> tuple[nn.Module, Compensation]:
    before = copy.deepcopy(dense.state_dict())
    small = apply(plan, dense).eval()
    plain, keys = distance(small, dense), list(small.state_dict())
    result = compensated(small, dense, plan, lambda: CALIBRATION, UNSIZED)
    assert list(small.state_dict()) == keys
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(refit.after <= refit.before for refit in result.refits)
    assert any(refit.after < 0.9 * refit.before for refit in result.refits)
    assert distance(small, dense) < plain
    return small, result


def test_a_resnet_narrowed_inside_its_blocks() -> None:
    dense = resnet()
    _, plan = planned(dense, only="conv1:channels")
    _, result = checked(dense, plan)
    closing = [name for name, _ in dense.named_modules() if "conv2" in name]
    assert [refit.layer for refit in result.refits] == [*closing, "linear"]
    assert not result.left


def test_what_precedes_removed_blocks_makes_up_for_the_run() -> None:
    dense = resnet()
    _, plan = planned(dense, dropped=("layer1.1", "layer1.2"), only="none")
    _, result = checked(dense, plan)
    refit, *behind = result.refits
    assert refit.layer == "layer1.0.conv2"
    assert refit.blocks == ("layer1.1", "layer1.2")
    assert [each.layer for each in behind] == [f"layer{n}.{k}.conv2" for n in (2, 3) for k in range(3)] + ["linear"]


def test_layers_that_read_as_much_as_before_make_up_for_what_comes_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = resnet()
    _, plan = planned(dense, dropped=("layer1.1", "layer2.1"), only="layer1.0.conv1:channels")
    all_of_them, _ = checked(dense, plan)
    monkeypatch.setattr(targets, "_behind", lambda *given: set())
    few, result = checked(dense, plan)
    assert {refit.layer for refit in result.refits} == {"layer1.0.conv2", "layer2.0.conv2"}
    assert distance(all_of_them, dense) < 0.8 * distance(few, dense)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv3_small_050", {}),
        ("densenet121", {"growth_rate": 8, "block_config": (2, 2)}),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64), "ls_init_value": 1.0}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
        ),
    ],
)
def test_any_model_that_can_be_narrowed(name: str, options: Mapping[str, object]) -> None:
    torch.manual_seed(0)
    dense = varied(timm.create_model(name, num_classes=10, **options))
    settle_norms(dense, CALIBRATION, UNSIZED.forward)
    _, plan = planned(dense)
    checked(dense, plan)


def test_statistics_of_the_dense_model_repair_one_group_and_one_block() -> None:
    dense = resnet()
    graph, _ = planned(dense)
    statistics = DenseStatistics.collect(dense, graph, lambda: CALIBRATION, UNSIZED)
    group = graph.group("layer2.1.conv1:channels")
    narrow = make_plan(dense, graph, {group.name: torch.arange(group.size // 2)})
    without = make_plan(dense, graph, {}, dropped=("layer3.2",))
    for plan in (narrow, without):
        small = apply(plan, dense, [name for name, _ in dense.named_parameters()]).eval()
        plain = distance(small, dense)
        (quick,) = statistics.repair(small, plan).refits
        assert distance(small, dense) < 0.7 * plain
        slow, *_ = compensated(apply(plan, dense).eval(), dense, plan, lambda: CALIBRATION, UNSIZED).refits
        assert (quick.before, quick.after) == pytest.approx((slow.before, slow.after), rel=1e-3)


def test_settled_norms_change_no_output_and_no_training_step() -> None:
    model = varied(build_model(ModelConfig(source="builtin", name="cifar_resnet20")).module)
    with torch.no_grad():
        before = model(OTHERS[0].inputs)
        settle_norms(model, CALIBRATION[:1], UNSIZED.forward)
        assert torch.allclose(model(OTHERS[0].inputs), before, atol=1e-4)
        evaluated = model(CALIBRATION[0].inputs)
        assert torch.allclose(model.train()(CALIBRATION[0].inputs), evaluated, atol=1e-3)
