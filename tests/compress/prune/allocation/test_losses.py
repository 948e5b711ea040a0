"""Losses of single choices: against a whole evaluation, from the changed block on, and without data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from compress.core.batch_norm import recalibrate
from compress.graph.apply import apply
from compress.graph.graph import Graph
from compress.graph.known import Known
from compress.graph.plan import make_plan
from compress.prune.allocation.decisions import Decision, decisions_of, stages_of
from compress.prune.allocation.losses import (
    Judges,
    _besides,
    changed_modules,
    counted_losses,
    key_of_blocks,
    measured_losses,
)
from compress.prune.allocation.replay import Replay
from evaluators.datasets.batch import Batch
from evaluators.tasks import UNSIZED
from spaces.zoo import ModelConfig, build_model

BATCHES = [
    Batch(torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(n)), torch.zeros(12)) for n in range(2)
]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = build_model(ModelConfig(source="builtin", name="cifar_resnet20")).module
    recalibrate(model, BATCHES, 2, forward=UNSIZED.forward)
    return model.eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


class Concatenating(nn.Module):
    """What a block is given is read again at the end, so that nothing can be passed by."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = resnet().layer1
        self.stem = nn.Conv2d(3, 16, 1)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        second = self.blocks[0](first)
        third = self.blocks[1](second)
        fourth = self.blocks[2](third)
        return self.head(torch.cat([first, second, third, fourth], 1).mean((2, 3)))


def graph_of(model: nn.Module) -> Graph:
    return Known().graph(model, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def whole_error(dense: nn.Module, small: nn.Module) -> float:
    with torch.no_grad():
        wanted = torch.cat([dense(batch.inputs) for batch in BATCHES]).double()
        found = torch.cat([small(batch.inputs) for batch in BATCHES]).double()
    return float((found - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("make", [resnet, vit, Concatenating])
def test_a_run_from_the_changed_block_on_gives_the_error_of_a_whole_run(make: Any) -> None:
    dense = make().eval()
    graph = graph_of(dense)
    before = copy.deepcopy(dense.state_dict())
    replay = Replay(dense, BATCHES, UNSIZED, graph.blocks)
    narrowed = [({g.name: torch.arange(g.size // 2)}, ()) for g in graph.groups]
    for kept, dropped in [*narrowed, *(({}, (block,)) for block in graph.blocks)]:
        plan = make_plan(dense, graph, kept, dropped=dropped)
        small = apply(plan, dense, [name for name, _ in dense.named_parameters()])
        start = replay.first_changed(changed_modules(dense, small, dropped))
        expected = whole_error(dense, small)
        assert replay.error(replay.quick(small, dropped), start) == pytest.approx(expected, rel=1e-3, abs=1e-8)
        assert expected > 0
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in before.items())


def test_blocks_before_a_change_are_passed_by() -> None:
    dense = resnet()
    replay = Replay(dense, BATCHES, UNSIZED, graph_of(dense).blocks)
    ran: list[str] = []
    small = replay.quick(copy.deepcopy(dense), ())
    for name in ("layer1.0.conv1", "layer2.1.conv1", "layer3.1.conv1"):
        small.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    assert replay.first_changed(["layer2.1.conv1", "layer3.1.bn2"]) == "layer2.1"
    assert replay.first_changed(["conv1"]) is None
    assert replay.error(small, "layer2.1") < 1e-9
    assert ran == ["layer2.1.conv1", "layer3.1.conv1"] * len(BATCHES)


def scored(graph: Graph) -> dict[str, Tensor]:
    return {
        g.name: torch.rand(g.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for g in graph.groups
    }


def halves(graph: Graph) -> tuple[Decision, ...]:
    return decisions_of(graph, lambda name: (graph.group(name).size // 2, graph.group(name).size))


def stages(dense: nn.Module, graph: Graph) -> dict[str, tuple[tuple[str, ...], bool]]:
    return stages_of(graph, lambda name: [f"{name}.{child}" for child, _ in dense.get_submodule(name).named_children()])


def test_losses_are_measured_once_and_known_ones_are_taken() -> None:
    dense = resnet()
    graph = graph_of(dense)
    replay = Replay(dense, BATCHES, UNSIZED, graph.blocks)
    repaired: list[nn.Module] = []
    together: list[tuple[str, ...]] = []

    def judges() -> Judges:
        return Judges(
            replay,
            lambda small, plan: repaired.append(small),
            lambda stage, small, plan: together.append((stage, *sorted(plan.dropped))),
        )

    known: dict[str, Any] = {}
    inputs = graph, scored(graph), halves(graph), stages(dense, graph)
    table = measured_losses(*inputs, judges, known)
    assert len(repaired) == len(graph.blocks) + len(halves(graph)) == len(known) - len(together)
    assert all(losses[0] > 0 and losses[-1] == 0 for losses in table.widths.values())
    first = sorted((b for b in table.blocks if b.startswith("layer1")), key=lambda block: table.blocks[block])
    all_that_may = [first[:2], ["layer2.1", "layer2.2"], ["layer3.1", "layer3.2"]]  # layer1 holds nothing else
    assert sorted(together) == [(name, *sorted(of)) for name, of in zip(inputs[3], all_that_may, strict=True)]
    del known[key_of_blocks(("layer2.1",))]
    again = measured_losses(*inputs, judges, known)
    assert len(repaired) == len(graph.blocks) + len(halves(graph)) + 1 and len(together) == 3
    assert again.blocks == pytest.approx(table.blocks) and again.widths == table.widths
    measured_losses(*inputs, lambda: pytest.fail("all is known"), known)


def test_blocks_that_go_together_lose_what_was_measured_or_the_sum_where_that_is_more() -> None:
    dense = resnet()
    graph = graph_of(dense)
    known: dict[str, Any] = {key_of_blocks((b,)): 0.1 for b in graph.blocks} | {
        key_of_blocks(("layer2.1", "layer2.2")): 0.5,
        key_of_blocks(("layer3.1", "layer3.2")): 0.15,
        key_of_blocks(("layer1.0", "layer1.1")): 0.2,
    }
    found = measured_losses(graph, {}, (), stages(dense, graph), lambda: pytest.fail("all is known"), known)
    assert found.together["layer1"] == pytest.approx((0, 0, 0))
    assert found.together["layer2"] == pytest.approx((0, 0, 0.3))
    assert found.together["layer3"] == pytest.approx((0, 0, 0))
    besides = _besides([0.1] * 8, {6: 1.2, 8: 3.2})
    assert [besides[n] for n in (0, 1, 6, 8)] == pytest.approx([0, 0, 0.6, 2.4])
    assert besides[7] == pytest.approx((8**0.5 - 1) * 0.7)  # the factor is between 2 and 4


def test_without_data_the_scores_of_what_goes_add_up() -> None:
    graph = graph_of(resnet())
    scores = scored(graph)
    table = counted_losses(graph, scores, dict.fromkeys(scores, 2.0), halves(graph))
    name = "layer2.1.conv1:channels"
    lowest = scores[name].sort().values[:16]
    assert table.widths[name] == pytest.approx((2 * float(lowest.sum()), 0.0))
    assert table.blocks["layer2.1"] == pytest.approx(2 * float(scores[name].sum()))


def test_ties_move_together_and_stages_keep_a_block() -> None:
    from dataclasses import replace

    graph = graph_of(resnet())
    a, b = "layer1.0.conv1:channels", "layer2.0.conv1:channels"  # 16 and 32 wide
    tied = replace(graph, ties=((a, b),))
    decision = next(d for d in decisions_of(tied, lambda name: (4, 5)) if a in d.groups)
    assert decision.options == ({a: 2, b: 4}, {a: 4, b: 8}, {a: 5, b: 10}, {a: 16, b: 32})
    model = resnet()

    def children(name: str) -> list[str]:
        return [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()]

    stages = stages_of(graph, children)
    assert {name: keeps for name, (_, keeps) in stages.items()} == {"layer1": True, "layer2": False, "layer3": False}
