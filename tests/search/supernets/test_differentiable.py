"""What strategies.md asks of differentiable search: sections 3.5 to 3.7."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TinyLoader, equal, tiny_data
from torch import Tensor
from torch.func import functional_call
from toy_space import Toy, ToySupernet

from compress.core.errors import Diverged, InputError
from compress.core.problems import validated
from compress.training.engine import Engine
from compress.training.update import Updater
from evaluators.datasets.batch import Batch
from search.supernets.differentiable import Differentiable, DifferentiableStep
from search.supernets.method import SupernetConfig, SupernetContext, seeded
from spaces.darts.genotype import Genotype
from spaces.registry import create, open_preset
from spaces.space import Space
from spaces.supernet import Supernet

KINDS: list[dict[str, Any]] = [
    {"relaxation": "softmax"},
    {"relaxation": "gumbel"},
    {"relaxation": "binary"},
    {"order": "second"},
]


def kind_of(options: dict[str, Any]) -> str:
    return str(next(iter(options.values())))


each_kind = pytest.mark.parametrize("kind", KINDS, ids=kind_of)


def context(folder: Path, method: dict[str, Any], **settings: Any) -> SupernetContext:
    given = {"epochs": 2, "optimizer": "momentum", "lr": 0.1, "weight_decay": 3e-4, "warmup_epochs": 0, **settings}
    config = validated(SupernetConfig, {"method": {"name": "differentiable", **method}, **given})
    data = replace(tiny_data(96, 16), test=TinyLoader(96, 16, seed=5))
    return SupernetContext(config, data, "cpu", 0, folder)


def made(given: SupernetContext, space: Space | None = None) -> tuple[Supernet, DifferentiableStep]:
    space = space or Toy()
    method = given.config.method
    assert isinstance(method, Differentiable)
    with seeded(1):
        supernet = method.make(space, space.default_task)
        return supernet, method.step(supernet, given)


def exact(folder: Path, method: dict[str, Any], space: Space | None = None) -> tuple[Supernet, DifferentiableStep]:
    """Everything in double precision, in the middle of a training."""
    given = context(folder, method)
    torch.set_default_dtype(torch.float64)
    try:
        supernet, step = made(given, space)
    finally:
        torch.set_default_dtype(torch.float32)
    given.data.train.images = given.data.train.images.double()
    step.held_out.loader.images = step.held_out.loader.images.double()
    updater = Updater(supernet, step, given.config, device="cpu", seed=0, batches=6)
    updater.train()
    for number, batch in enumerate(given.data.train.epoch(0)):
        updater.update(batch, number)
    with torch.no_grad():
        step.strengths += torch.where(step.present, torch.randn(step.present.shape), 0.0)
    supernet.zero_grad(set_to_none=True)
    return supernet, step


def last_batch(step: DifferentiableStep) -> Batch:
    return next(TinyLoader(16, 16, seed=9).epoch(0)).mapped(Tensor.double)


def slopes(step: DifferentiableStep, loss: Any, h: float = 1e-5) -> Tensor:
    """The numerical derivative of `loss` for every strength."""
    found = torch.zeros_like(step.strengths)
    with torch.no_grad():
        for place in step.present.nonzero():
            ends = []
            for sign in (h, -h):
                step.strengths[tuple(place)] += sign
                ends.append(loss())
                step.strengths[tuple(place)] -= sign
            found[tuple(place)] = (ends[0] - ends[1]) / (2 * h)
    return found


def test_gradients_of_strengths_equal_finite_differences(tmp_path: Path) -> None:
    """On a toy with two operations, and none of it in the weights or the running statistics."""
    supernet, step = exact(tmp_path, {}, Toy(["conv3", "skip_connect"], ["conv1", "blind"]))
    held_out = step.held_out.batch(7)
    task, strengths = step.task, step.strengths.detach().clone()

    def loss() -> Tensor:
        supernet.mix(step.named(step.strengths.softmax(1)))
        return task.loss(supernet(held_out.inputs), held_out)

    expected = slopes(step, loss)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    step.loss(supernet, last_batch(step), 7)
    assert step.strengths.grad is not None and expected.abs().min() > 1e-6
    torch.testing.assert_close(step.strengths.grad, expected, rtol=1e-5, atol=1e-9)
    assert not torch.equal(step.strengths, strengths)
    assert all(parameter.grad is None for parameter in supernet.parameters())
    after = supernet.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }  # of the pass on the training batch, which follows


@each_kind
def test_learning_strengths_leaves_the_rest_alone(kind: dict[str, Any], tmp_path: Path) -> None:
    supernet, step = exact(tmp_path, kind)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    strengths = step.strengths.detach().clone()
    step._search(supernet, last_batch(step), 7, step.method.relaxed(0))
    after = supernet.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.endswith("num_batches_tracked") for name in changed)  # which nothing reads
    assert all(parameter.grad is None for parameter in supernet.parameters())
    moved = step.strengths != strengths
    assert moved.sum(1).tolist() == ([2, 2] if kind_of(kind) == "binary" else [4, 3])


def test_second_order_at_distance_zero_is_first_order(tmp_path: Path) -> None:
    found = []
    for kind in ({}, {"order": "second", "xi": 0.0}):
        supernet, step = exact(tmp_path, kind)
        step.loss(supernet, last_batch(step), 7)
        found.append(step.strengths.grad)
    assert found[0] is not None and found[1] is not None
    assert found[0].abs().max() > 1e-3 and torch.equal(found[0], found[1])


def test_second_order_is_the_derivative_through_the_next_update(tmp_path: Path) -> None:
    """Momentum and weight decay included, against numerical differences of the whole bilevel loss."""
    supernet, step = exact(tmp_path, {"order": "second", "xi": 0.2})
    batch, held_out, task = last_batch(step), step.held_out.batch(7), step.task
    groups = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
    assert {group["momentum"] for group in groups.values()} == {0.9}
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 3e-4}

    def training(weights: dict[str, Tensor]) -> Tensor:
        supernet.mix(step.named(step._masked().softmax(1)))
        return task.loss(functional_call(supernet, weights, (batch.inputs,)), batch)

    def bilevel() -> Tensor:
        weights = {name: p.detach().clone().requires_grad_() for name, p in supernet.named_parameters()}
        with torch.enable_grad():
            gradients = torch.autograd.grad(training(weights), [*weights.values()])
        ahead = {}
        for (name, p), gradient in zip(supernet.named_parameters(), gradients, strict=True):
            velocity = 0.9 * step.optimizer.state[p]["momentum_buffer"]
            ahead[name] = p - 0.2 * (velocity + gradient + groups[id(p)]["weight_decay"] * p)
        supernet.mix(step.named(step._masked().softmax(1)))
        return task.loss(functional_call(supernet, ahead, (held_out.inputs,)), held_out)

    expected = slopes(step, bilevel)
    supernet.mix(step.named(step._masked().softmax(1)))
    first = slopes(step, lambda: first_order(supernet, step, held_out))
    step.loss(supernet, batch, 7)
    assert step.strengths.grad is not None
    torch.testing.assert_close(step.strengths.grad, expected, rtol=1e-3, atol=1e-6)
    assert (first - expected).abs().max() > 100 * (step.strengths.grad - expected).abs().max()


def first_order(supernet: Supernet, step: DifferentiableStep, held_out: Batch) -> Tensor:
    supernet.mix(step.named(step._masked().softmax(1)))
    return step.task.loss(supernet(held_out.inputs), held_out)


def test_binary_paths_compute_one_candidate_for_weights_and_two_for_strengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet, step = made(context(tmp_path, {"relaxation": "binary"}))
    step.prepare(supernet, Engine("cpu"))
    computed: list[list[int]] = []

    def mix(weights: Any) -> None:
        computed.append([len(chosen) for chosen in weights.values()])
        ToySupernet._mix(supernet, weights)

    monkeypatch.setattr(supernet, "_mix", mix)
    loss = step.loss(supernet, next(TinyLoader(16, 16).epoch(0)), 0)
    assert computed == [[2, 2], [1, 1]]
    loss.backward()
    assert any(parameter.grad is None for parameter in supernet.parameters())


@each_kind
def test_the_operation_that_is_best_is_found(kind: dict[str, Any], tmp_path: Path) -> None:
    given = context(tmp_path, {**kind, "arch_lr": 0.05}, epochs=6)
    space = Toy(["noise", "conv3"], ["conv1", "noise"])
    supernet, _ = made(given, space)
    training = given.config.method.train(supernet, given)
    assert training.found == {"first": "conv3", "second": "conv1"}
    assert training.details["probabilities"]["first"]["conv3"] > 0.7
    assert training.details["skips"] == 0


def test_a_cost_moves_what_is_found_to_fewer_macs(tmp_path: Path) -> None:
    space = Toy(["conv3", "conv1"], ["conv3", "conv1", "skip_connect"])
    macs = []
    for cost in (None, {"macs": 3000.0, "weight": 5.0}, {"macs": 3000.0, "weight": 5.0, "form": "linear"}):
        given = context(tmp_path, {"arch_lr": 0.05, "cost": cost}, epochs=4)
        events: list[dict[str, Any]] = []
        given = replace(given, log=events.append)
        supernet, _ = made(given, space)
        found = given.config.method.train(supernet, given).found
        assert found is not None
        macs.append(space.cost(found)["macs"])
        assert all(("expected_macs" in event) == (cost is not None) for event in events)
    assert macs[1] == macs[2] < macs[0]


def test_macs_below_the_target_cost_nothing(tmp_path: Path) -> None:
    grads = []
    for cost in (None, {"macs": 1e9, "weight": 5.0}, {"macs": 10.0, "weight": 5.0}):
        supernet, step = exact(tmp_path, {"cost": cost})
        step.loss(supernet, last_batch(step), 7)
        grads.append(step.strengths.grad)
    assert torch.equal(grads[0], grads[1]) and not torch.allclose(grads[0], grads[2])  # type: ignore[arg-type]


class Broken(Exception):
    pass


class Breaking(TinyLoader):
    """A loader that fails before the ninth batch of a run."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(epoch, start), start + epoch * len(self)):
            if number == 8:
                raise Broken
            yield batch


@each_kind
def test_a_broken_training_goes_on_to_the_same_bits(kind: dict[str, Any], tmp_path: Path) -> None:
    method = {**kind, "arch_lr": 0.01}

    def train(folder: str, *, broken: bool = False, resume: bool = False) -> tuple[Supernet, Any]:
        given = replace(context(tmp_path / folder, method, checkpoint_seconds=0), resume=resume)
        if broken:
            given.data.train = Breaking(96, 16)
        supernet, _ = made(given)
        return supernet, given.config.method.train(supernet, given)

    whole, expected = train("whole")
    with pytest.raises(Broken):
        train("broken", broken=True)
    again, found = train("broken", resume=True)
    assert equal(whole, again)
    assert found.found == expected.found
    assert found.details["probabilities"] == expected.details["probabilities"]


@each_kind
def test_what_is_no_number_ends_the_training_in_a_sentence(kind: dict[str, Any], tmp_path: Path) -> None:
    given = context(tmp_path, kind, checkpoint_seconds=0)
    given.data.test.images[:] = torch.nan  # strengths alone learn from these
    supernet, _ = made(given)
    with pytest.raises(Diverged, match=r"differentiable\): .* is (nan|not finite)"):
        given.config.method.train(supernet, given)


def test_strengths_wait_for_weights_to_warm_up(tmp_path: Path) -> None:
    given = context(tmp_path, {"arch_warmup_epochs": 1, "arch_lr": 0.1})
    seen: list[float] = []
    given = replace(given, log=lambda event: seen.append(event["openness"]))
    supernet, _ = made(given)
    given.config.method.train(supernet, given)
    assert seen[0] == 1.0 > seen[1]


def test_bf16_is_close_to_full_precision(tmp_path: Path) -> None:
    for kind in KINDS[:3]:
        losses, strengths = [], []
        for precision in ("32", "bf16"):
            given = context(tmp_path, {**kind, "arch_lr": 0.01}, precision=precision)
            supernet, step = made(given)
            updater = Updater(supernet, step, given.config, device="cpu", seed=0, batches=6)
            updater.train()
            losses.append([updater.update(batch, n).item() for n, batch in enumerate(given.data.train.epoch(0))])
            strengths.append(step.strengths.detach())
        assert losses[1] == pytest.approx(losses[0], rel=0.05)
        torch.testing.assert_close(strengths[0], strengths[1], atol=0.02, rtol=0)


def test_skips_that_take_over_end_the_training_before_they_count(tmp_path: Path) -> None:
    """Skips win here, since nothing else is better: the training ends, and what was before it is found."""
    space = Toy(["conv1", "skip_connect"], ["skip_connect", "blind"])
    collapse = {"max_skips": 0, "within": "second", "after_epochs": 1}
    given = context(tmp_path, {"arch_lr": 0.05, "collapse": collapse}, epochs=9)
    events: list[dict[str, Any]] = []
    supernet, _ = made(given, space)
    training = given.config.method.train(supernet, replace(given, log=events.append))
    assert training.details["collapsed"] and len(events) == training.details["epochs_run"] == 2
    assert "too many" in training.notes[0]
    unwatched = context(tmp_path, {"arch_lr": 0.05}, epochs=1)
    supernet, _ = made(unwatched, space)
    assert training.found == unwatched.config.method.train(supernet, unwatched).found


def test_darts_cells_are_decoded_from_the_strongest_edges_without_none(tmp_path: Path) -> None:
    space = create("darts", {"channels": 2, "layers": 3, "norm": "search"})
    space.default_task = space.task(4, 3, 8)
    supernet, step = made(context(tmp_path, {"relaxation": "binary"}), space)
    expected = open_preset("darts", "darts-v2")[1]
    assert expected is not None
    genotype = Genotype.from_choices(expected)
    with torch.no_grad():
        for name, row in zip(step.candidates, step.strengths, strict=True):
            kind, state, node = name.split("_")
            chosen = genotype.operations(kind).get((int(state), int(node)))  # type: ignore[arg-type]
            row[0] = 5 if chosen is None else 0
            row[0 if chosen is None else step.candidates[name].index(chosen)] += 3
    assert step.found(supernet) == expected
    assert step.figures()["skips"] == step.details()["skips"] == 5
    assert "with 5 skip connections" in step.notes()[0]
    step.prepare(supernet, Engine("cpu"))
    for update in range(3):  # most edges are `none` now, which leaves nodes without any input
        loss = step.loss(supernet, next(TinyLoader(8, 8).epoch(0)), update)
        assert loss.isfinite()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ({"order": "second"}, {"optimizer": "adamw"}, r"supernet.optimizer: .*; got 'adamw'; allowed momentum"),
        ({"order": "second"}, {"precision": "bf16"}, r'supernet.precision: .*; got "bf16"; allowed "32"'),
        ({"arch_warmup_epochs": 2}, {}, r"arch_warmup_epochs: nothing is left of 2 epochs"),
        ({"collapse": {"max_skips": 1, "within": "normal.*"}}, {}, r"within: no decision.*; got 'normal.\*'; allowed"),
        ({"order": "second", "relaxation": "binary"}, {}, "got relaxation binary; allowed order first"),
        ({"xi": 0.1}, {}, "xi is for order second; got order first"),
        ({"temperature": 2.0}, {}, "temperatures are for relaxation gumbel; got softmax"),
        ({"arch_betas": [0.5]}, {}, "arch_betas"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    method: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        made(context(tmp_path, method, **settings))


def test_a_space_that_cannot_mix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="space nats_size: its supernet cannot mix choices"):
        made(context(tmp_path, {}), create("nats_size", {}))
