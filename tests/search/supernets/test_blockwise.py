"""What strategies.md asks of block-wise training: section 5.5; and that it stops and goes on as it should."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import search.supernets.blockwise as blockwise
from compress.core.errors import Diverged, InputError
from compress.core.problems import validated
from compress.training.engine import Engine
from evaluators.datasets import Data
from evaluators.datasets.batch import Batch
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import with_holdout
from evaluators.datasets.views import Views, views_of
from evaluators.tasks import DEFAULT
from search.supernets.block_paths import FairPaths
from search.supernets.block_ratings import BlockRater
from search.supernets.bootstrap import Branch, Projector, bootstrap_loss, ensemble, follow, target_momentum
from search.supernets.method import SupernetConfig, SupernetContext, Training, seeded
from search.supernets.population import Side, population_losses, settle
from spaces.architecture import Choice
from spaces.registry import create, open_preset
from spaces.space import Space
from spaces.supernet import Supernet, SupernetBlock


@pytest.fixture(scope="module")
def data() -> Data:
    whole = DigitsConfig(name="digits", image_size=8, limit_train=160, batch_size=32).load(DEFAULT, seed=0)
    assert whole is not None
    return with_holdout(whole, 0.2, 0)


def space_of(data: Data) -> Space:
    """Two stages of one and two layers, three operations each."""
    found = create("nas_bench_macro", {"stem": 4, "depths": (1, 2)})
    found.default_task = data.task
    return found


def context(data: Data, folder: Path, method: Mapping[str, Any] | None = None, **settings: Any) -> SupernetContext:
    options = {"name": "blockwise", "hidden": 32, "projection": 16, **(method or {})}
    given = {"method": options, "epochs": 1, "optimizer": "lars", "lr": 0.5, "weight_decay": 1e-6, **settings}
    return SupernetContext(validated(SupernetConfig, given), data, "cpu", 0, folder)


def train(given: SupernetContext, space: Space | None = None) -> tuple[Supernet, Training]:
    space = space or space_of(given.data)
    with seeded(given.seed):
        net = space.supernet(given.data.task)
    return net, given.config.method.train(net, given)


def step_of(given: SupernetContext, net: Supernet) -> blockwise.BootstrapStep:
    """The first block's step, ready for its first update."""
    with seeded(0):
        step = given.config.method.step(net, given)
    assert isinstance(step, blockwise.BootstrapStep)
    step.prepare(net.blocks()[0], Engine("cpu"))
    return step.train()


def views(data: Data, seed: int = 0) -> Batch:
    return next(Views(data, 2).epoch(seed))


def test_the_target_follows_from_099_to_standing_still() -> None:
    assert target_momentum(0, 40) == pytest.approx(0.99)
    assert target_momentum(20, 40) == pytest.approx(0.995)
    assert target_momentum(40, 40) == 1.0
    target, online = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * target.weight.detach() + 0.1 * online.weight.detach()
    follow(target, online, 0.9)
    assert torch.allclose(target.weight, expected)


def test_loss_is_minus_two_for_vectors_of_one_direction() -> None:
    vectors = torch.randn(5, 8)
    assert float(bootstrap_loss(vectors, 3 * vectors)) == pytest.approx(-2, abs=1e-6)
    assert float(bootstrap_loss(vectors, -vectors)) == pytest.approx(2, abs=1e-6)
    distance = (F.normalize(vectors) - F.normalize(vectors.flip(0))).square().sum(1).mean()
    assert float(bootstrap_loss(vectors, vectors.flip(0))) == pytest.approx(float(distance) - 2, abs=1e-6)


class Scaled(SupernetBlock):
    """A block whose paths turn the channels by different angles; no weights."""

    def __init__(self, angles: Sequence[float]) -> None:
        super().__init__()
        self.outputs = {2: 1}
        self.angles, self.angle = angles, 0.0

    def paths(self, before: Mapping[str, Choice]) -> Sequence[Mapping[str, Choice]]:
        return [{"angle": angle} for angle in self.angles]

    def code(self, path: Mapping[str, Choice]) -> str:
        return str(path["angle"])

    def activate(self, path: Mapping[str, Choice]) -> None:
        self.angle = float(path["angle"])

    def forward(self, features: Tensor) -> Tensor:
        x, y = features.unbind(1)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return torch.stack([cos * x - sin * y, sin * x + cos * y], 1)


def rated(angles: Sequence[float]) -> list[float]:
    block = Scaled(angles)
    side = Side(nn.Sequential(), Branch(block, nn.Flatten()))
    image = torch.randn(3, 2, 1, 1)
    batch = Batch((image, image), None)
    return population_losses(block.paths({}), side, side, [batch], [batch, batch], 2, "cpu")


def test_a_perfect_path_is_worth_minus_four_and_others_by_their_angle_to_the_centre() -> None:
    assert rated([0.4]) == pytest.approx([-4.0])
    found = rated([0.3, 0.0, -0.3])
    assert found == pytest.approx([-4 * math.cos(angle) for angle in (0.3, 0.0, -0.3)], abs=1e-5)


def test_the_target_has_the_statistics_of_its_path_though_it_is_frozen() -> None:
    block = Scaled([0.0, 0.5])
    norm = nn.BatchNorm1d(2)
    branch = Branch(block, nn.Sequential(nn.Flatten(), norm)).requires_grad_(False)
    side, image = Side(nn.Sequential(), branch), 3 + torch.randn(50, 2, 1, 1)
    batch, old = Batch((image, image), None), norm.running_mean.clone()
    population_losses(block.paths({}), side, side, [batch], [batch], 1, "cpu")
    assert torch.equal(norm.running_mean, old)
    settle(side, block.paths({})[0], [batch], "cpu")
    torch.testing.assert_close(norm.running_mean, image.flatten(1).mean(0))
    with torch.no_grad():  # each path's own statistics take the mean away, which lies in the same direction for all
        each = [(branch.activate(path), branch(image))[1] for path in block.paths({})]
    assert each[0].mean(0).abs().max() < 1e-5 < each[1].mean(0).abs().max()


def test_order_of_paths_does_not_matter_to_the_target() -> None:
    each = [torch.randn(4, 8) for _ in range(4)]
    assert torch.allclose(ensemble(each), ensemble(each[::-1]), atol=1e-7)


def test_a_single_path_is_byol(data: Data, tmp_path: Path) -> None:
    given = context(data, tmp_path, {"paths": {"kind": "distinct", "number": 1}})
    net = space_of(data).supernet(data.task)
    block = net.blocks()[0].train()
    step, batch = step_of(given, net), views(data)
    online, target = copy.deepcopy(block), copy.deepcopy(step.target)
    path = step.draw(random.Random(blockwise.seed_of(0, 0, 3)))[0]
    online.activate(path)
    target.activate(path)
    first, second = views_of(batch)
    ours = [step.predictor(step.projector(online(view))) for view in (first, second)]
    theirs = [F.normalize(target(view), dim=1).detach() for view in (first, second)]
    expected = bootstrap_loss(ours[0], theirs[1]) + bootstrap_loss(ours[1], theirs[0])
    assert float(step.loss(block, batch, 3)) == pytest.approx(float(expected.detach()), abs=1e-4)


def test_gradients_reach_the_online_block_and_its_heads_alone(data: Data, tmp_path: Path) -> None:
    given = context(data, tmp_path)
    net = space_of(data).supernet(data.task)
    first, second = net.blocks()
    first.activate(first.paths({})[0])
    before = first.paths({})[0]
    target_first = copy.deepcopy(first)
    method = given.config.method
    assert isinstance(method, blockwise.Blockwise)
    draw = method.paths.drawer(second.paths(before), before)
    step = blockwise.BootstrapStep(
        method, given, second, draw, (nn.Sequential(first), nn.Sequential(target_first)), 1
    ).train()
    step.prepare(second, Engine("cpu"))
    step.loss(second.train(), views(data), 0)
    for module in (step.projector, step.predictor):
        assert all(parameter.grad is not None for parameter in module.parameters())
    assert any(parameter.grad is not None for parameter in second.parameters())
    for frozen in (step.target, first, target_first):
        assert all(parameter.grad is None for parameter in frozen.parameters())


def test_a_block_learns_and_four_paths_make_a_steadier_target(data: Data, tmp_path: Path) -> None:
    losses: list[float] = []
    given = replace(
        context(data, tmp_path, {"paths": {"kind": "distinct", "number": 4}}, epochs=5, warmup_epochs=0),
        log=lambda event: losses.append(event["loss"]),
    )
    space = open_preset("hytra", "tiny", {"layers": 2, "blocks": 1, "channels": (8, 16), "head_dim": 2})[0]
    space.default_task = data.task
    net, _ = train(given, space)
    assert losses[-1] < losses[0] - 1
    block, batch = net.blocks()[0], views(data, 9)
    projector = Projector(block.outputs, 32, 16)
    paths, generator = block.paths({}), random.Random(0)

    def centre(number: int) -> Tensor:
        found = []
        for path in generator.sample(paths, number):
            block.activate(path)
            found.append(projector(block(views_of(batch)[0])))
        return ensemble(found)

    spread = [torch.stack([centre(number) for _ in range(12)]).var(0).sum() for number in (1, 4)]
    assert spread[1] < spread[0] / 2


def test_labels_change_nothing(data: Data, finished: tuple[Supernet, Training], tmp_path: Path) -> None:
    assert data.train is not None and data.test is not None
    other = replace(data, train=copy.copy(data.train), test=copy.copy(data.test))
    for loader in (other.train, other.test):
        loader.labels = loader.labels[torch.randperm(len(loader.labels))]  # type: ignore[union-attr]
    net, training = finished
    permuted, found = train(context(other, tmp_path))
    assert same(net, permuted) and training.ratings == found.ratings


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    state = theirs.state_dict()
    return all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


@pytest.fixture(scope="module")
def finished(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, Training]:
    return train(context(data, tmp_path_factory.mktemp("whole"), checkpoint_seconds=0))


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("where", "call"),
    [("training", 2), ("training", 6), ("rating", 2), ("written", 1)],
)
def test_a_killed_training_goes_on_bit_for_bit(
    data: Data,
    finished: tuple[Supernet, Training],
    tmp_path: Path,
    where: str,
    call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in an update (of 4 of each block), in the rating of a block, or right after that was written."""
    whole, expected = finished
    given = context(data, tmp_path, checkpoint_seconds=0)
    calls = 0

    def killed(original: Any, after: bool) -> Any:
        def wrapped(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            found = original(*args, **named) if after or calls < call else None
            if calls == call:
                raise Killed
            return found

        return wrapped

    with monkeypatch.context() as patched:
        if where == "training":
            patched.setattr(blockwise.BootstrapStep, "loss", killed(blockwise.BootstrapStep.loss, False))
        elif where == "rating":
            patched.setattr(blockwise, "population_losses", killed(population_losses, False))
        else:
            patched.setattr(blockwise, "write_json", killed(blockwise.write_json, True))
        with pytest.raises(Killed):
            train(given)
    net, found = train(replace(given, resume=True))
    assert same(whole, net)
    assert (found.found, found.ratings) == (expected.found, expected.ratings)


def test_a_training_of_another_length_cannot_go_on_but_begin_anew(data: Data, tmp_path: Path) -> None:
    steady = {"schedule": "constant", "warmup_epochs": 0, "checkpoint_seconds": 0}
    train(context(data, tmp_path, **steady))
    longer = context(data, tmp_path, epochs=2, **steady)
    with pytest.raises(InputError, match=r"cannot resume from .*: epochs was 1, is 2"):
        train(replace(longer, resume=True))
    assert train(longer)[1].details["epochs_run"] == 2


def test_a_loss_that_is_not_finite_stops_the_run(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "bootstrap_loss", lambda predicted, target: predicted.sum() * float("nan"))
    with pytest.raises(Diverged, match=r"supernet \(blockwise\), block 1 of 2: .* update 1"):
        train(context(data, tmp_path))


def test_an_architecture_is_worth_the_sum_over_its_blocks(data: Data, tmp_path: Path) -> None:
    net, training = train(context(data, tmp_path, {"paths": {"kind": "fair"}}))
    assert training.ratings is not None and training.found is not None
    blocks = training.ratings["blocks"]
    assert [len(losses) for losses in blocks] == [3, 9]
    rater = BlockRater(net.blocks(), blocks)
    found = {arch: rater.free(arch)["bootstrap_loss"] for arch in net.space}
    arch = net.space.parse("120")
    assert found[arch] == blocks[0]["1"] + blocks[1]["20"]
    assert min(found, key=found.__getitem__) == training.found
    assert all(-8 <= loss <= 0 for loss in found.values())
    assert rater.rate(arch, data) == rater.free(arch) and rater.metrics(data) == ("bootstrap_loss",)
    with pytest.raises(InputError, match=r"block 2 of 2: path 20 was not rated"):
        BlockRater(net.blocks(), [blocks[0], {"00": -1.0}]).free(arch)


def test_fair_paths_train_every_choice_once(data: Data) -> None:
    block = create("nats_size", {}).supernet(data.task).blocks()[1]
    before = {"block1": 8, "block2": 16}
    paths = FairPaths().drawer(block.paths(before), before)(random.Random(0))
    assert len(paths) == 8
    for name in ("block3", "block4"):
        assert sorted(path[name] for path in paths) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert all(path["block1"] == 8 and path["block2"] == 16 for path in paths)


def test_a_pair_of_views_for_each_path(data: Data, tmp_path: Path) -> None:
    given = context(data, tmp_path, {"views": "pair_per_path", "paths": {"kind": "fair"}})
    net = space_of(data).supernet(data.task)
    step, block = step_of(given, net), net.blocks()[0].train()
    assert step.pairs == 3
    batch = next(Views(data, 6).epoch(0))
    assert torch.isfinite(step.loss(block, batch, 0))
    with pytest.raises(IndexError):
        step.loss(block, views(data), 0)


@pytest.mark.parametrize(
    ("settings", "method", "problem"),
    [
        ({"label_smoothing": 0.1}, {}, r"supernet.label_smoothing: is about labels"),
        ({"ema": 0.9}, {}, r"supernet.ema: method blockwise has an average of its own"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    data: Data, tmp_path: Path, settings: dict[str, Any], method: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        train(context(data, tmp_path, method, **settings))


def test_what_cannot_be_trained_is_told(data: Data, tmp_path: Path) -> None:
    hytra = open_preset("hytra", "tiny")[0]
    hytra.default_task = data.task
    with pytest.raises(InputError, match=r"paths.kind: got fair, .* allowed in this space: distinct"):
        train(context(data, tmp_path, {"paths": {"kind": "fair"}}), hytra)
    pooling = create("pooling", {})
    pooling.default_task = data.task
    with pytest.raises(InputError, match=r"space pooling: its supernet has no blocks"):
        train(context(data, tmp_path), pooling)
    plain = DigitsConfig(name="digits", image_size=8, limit_train=100, augment="none").load(DEFAULT, seed=0)
    assert plain is not None
    with pytest.raises(InputError, match=r"data.augment: got none, and views of an image must differ"):
        train(context(with_holdout(plain, 0.2, 0), tmp_path))
