"""What pruning.md asks of TAS: sections 4.3, 4.4 and 4.8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TinyLoader, equal, tiny_data
from torch import Tensor

import search.supernets.tas
from compress.core.errors import InputError
from compress.core.problems import validated
from compress.training.update import Updater
from search.supernets.method import SupernetConfig, SupernetContext, seeded
from search.supernets.tas import TAS, TASStep, relaxed, two_of
from spaces.registry import create
from spaces.resnet_shapes.supernet import ResNetShapesSupernet
from spaces.supernet import Supernet


def context(folder: Path, method: dict[str, Any], **settings: Any) -> SupernetContext:
    given = {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "warmup_epochs": 0, "holdout": 0.5, **settings}
    config = validated(SupernetConfig, {"method": {"name": "tas", **method}, **given})
    data = replace(tiny_data(48, 16), test=TinyLoader(48, 16, seed=5))
    return SupernetContext(config, data, "cpu", 0, folder)


def made(given: SupernetContext, depth: int = 14) -> tuple[ResNetShapesSupernet, TASStep]:
    space = create("resnet_shapes", {"depth": depth})
    data_task = given.data.task
    method = given.config.method
    assert isinstance(method, TAS)
    with seeded(1):
        supernet = method.make(space, data_task)
        step = method.step(supernet, given)
    assert isinstance(supernet, ResNetShapesSupernet)
    return supernet, step


def test_resnet56_has_55_rows_of_8_widths_and_3_of_5_depths(tmp_path: Path) -> None:
    _, step = made(context(tmp_path, {}), 56)
    assert step.widths.shape == (55, 8) and step.depths.shape == (3, 5)
    assert 0.009 < step.widths.std() < 0.011


def test_temperatures_fall_as_published() -> None:
    cosine, linear = TAS(), TAS(temperature="linear")
    assert [cosine.temperature_at(share) for share in (0, 0.5, 1)] == pytest.approx([5, 2.55, 0.1])
    assert [linear.temperature_at(share) for share in (0, 0.5, 1)] == pytest.approx([10, 5.05, 0.1])


def test_two_widths_are_drawn_by_their_probability_and_weighed_by_a_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]])).clamp_min(-60).repeat(20_000, 1)
    weights = two_of(z, generator)
    chosen = weights > 0
    assert bool((chosen.sum(1) == 2).all()) and not chosen[:, 3].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(z)))
    pairs = weights[chosen[:, 0] & chosen[:, 1]][0]
    torch.testing.assert_close(pairs, torch.tensor([0.625, 0.375, 0.0, 0.0]))
    # without replacement: P(0 among both) = 0.5 + 0.3 * 0.5 / 0.7 + 0.2 * 0.5 / 0.8
    assert chosen[:, 0].float().mean() == pytest.approx(0.5 + 0.15 / 0.7 + 0.1 / 0.8, abs=0.01)


def test_noise_that_is_not_finite_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = [torch.full((1, 3), torch.inf), torch.full((1, 3), torch.nan), torch.ones(1, 3)]
    monkeypatch.setattr(search.supernets.tas, "gumbel", lambda strengths, generator: draws.pop(0))
    assert relaxed(torch.zeros(1, 3), 0.5, torch.Generator()).tolist() == [[2.0, 2.0, 2.0]]


def test_rows_learn_from_the_task_by_two_widths_and_from_the_cost_by_all(tmp_path: Path) -> None:
    supernet, step = made(context(tmp_path, {"macs": 0.3}))
    weights = step.sampled(1.0, 0, 0)
    supernet.mix(weights)
    batch = next(TinyLoader(16, 16, seed=9).epoch(0))
    step.loss_of(supernet, batch).backward()
    assert step.widths.grad is not None and step.depths.grad is not None
    reached = step.widths.grad != 0
    kept = torch.stack([weights[name] != 0 for name in step.width_names])
    assert torch.equal(reached, kept) and bool((kept.sum(1) == 2).all())
    assert bool((step.depths.grad != 0).all())
    step.widths.grad = step.depths.grad = None
    step.cost().backward()
    assert bool((step.widths.grad != 0).all()) and bool((step.depths.grad != 0).all())


def share_of(step: TASStep) -> float:
    named = step._named(step.widths.softmax(1), step.depths.softmax(1))
    return step._expected_macs(named).item() / step.whole_macs


@pytest.mark.parametrize("side", ["above", "below"])
def test_the_cost_alone_leads_into_the_band(side: str, tmp_path: Path) -> None:
    """Each step lowers what is expected above the band, raises it below; within, there is no gradient at all."""
    torch.manual_seed(0)  # of some starts it takes thousands of steps
    _, step = made(context(tmp_path, {"macs": 0.5}), 32)
    with torch.no_grad():
        for rows in (step.widths, step.depths):
            strength = 0.5 + 0.5 * torch.rand(len(rows))
            rows.zero_()[:, -1 if side == "above" else 0] = strength
    steps = 0
    while (cost := step.cost()).requires_grad and steps < 500:
        macs, before = step.current()[1], share_of(step)
        assert not step.least <= macs <= step.most
        cost.backward()
        with torch.no_grad():
            for rows in (step.widths, step.depths):
                rows -= rows.grad
        step.widths.grad = step.depths.grad = None
        assert (share_of(step) < before) is (macs > step.most)
        steps += 1
    assert steps and 0.45 <= step.current()[1] / step.whole_macs <= 0.5
    assert cost.item() == 0


def test_weights_get_no_gradient_of_the_architecture(tmp_path: Path) -> None:
    supernet, step = made(context(tmp_path, {}))
    updater = Updater(supernet, step, context(tmp_path, {}).config, device="cpu", seed=0, batches=3)
    updater.train()
    seen = {}

    def look(loss: Tensor, inputs: Any = None) -> None:
        loss.backward(inputs=inputs)
        seen.update({name: parameter.grad is not None for name, parameter in supernet.named_parameters()})

    step.engine.backward = look  # type: ignore[method-assign]
    before = step.widths.detach().clone()
    loss = step.loss(supernet, next(TinyLoader(16, 16, seed=9).epoch(0)), 0)
    assert seen and not any(seen.values()) and not torch.equal(before, step.widths)
    step.widths.grad = None
    loss.backward()
    assert step.widths.grad is None  # and the weights' loss none of the weights' own


class Broken(Exception):
    pass


class Breaking(TinyLoader):
    """Batches that end in an error before the fifth."""

    def epoch(self, epoch: int, start: int = 0) -> Any:
        for number, batch in enumerate(super().epoch(epoch, start), start + epoch * len(self)):
            if number == 4:
                raise Broken
            yield batch


def test_a_broken_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def train(folder: str, *, broken: bool = False, resume: bool = False) -> tuple[Supernet, Any]:
        given = replace(context(tmp_path / folder, {"arch_lr": 0.05}, checkpoint_seconds=0), resume=resume)
        if broken:
            given.data.train = Breaking(48, 16)
        supernet, _ = made(given)
        return supernet, given.config.method.train(supernet, given)

    whole, expected = train("whole")
    with pytest.raises(Broken):
        train("broken", broken=True)
    again, found = train("broken", resume=True)
    assert equal(whole, again)
    assert found.found == expected.found
    assert found.details["code"] == expected.details["code"]


def test_the_latest_network_within_the_band_is_found(tmp_path: Path) -> None:
    supernet, step = made(context(tmp_path, {"macs": 0.5}))
    with torch.no_grad():
        for rows in (step.widths, step.depths):
            rows.zero_()[:, -1] = 0.5
    assert step.found(supernet) == supernet.space.largest()
    assert not step.details()["within_band"]
    assert "1.000 of the MACs, outside the band of 0.450 to 0.500" in step.notes()[0]
    step.kept.zero_()
    assert supernet.space.cost(step.found(supernet), supernet.task)["macs"] == step.details()["macs"]
    assert step.found(supernet) != supernet.space.largest()


def test_other_spaces_and_too_few_macs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tas searches widths and depths; got the space nats_size; allowed resnet_"):
        TAS().make(create("nats_size"), create("nats_size").default_task)
    with pytest.raises(InputError, match=r"method\.macs: no network has so few; got 0\.01; allowed 0\.\d+ to"):
        made(context(tmp_path, {"macs": 0.01}))
