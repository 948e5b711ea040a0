"""The checks pass for what is shipped, and say in a sentence what is wrong with a plug-in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import InputError
from compress.criteria import WeightCriterion, unit_criteria, weight_criteria
from compress.criteria.score import score_units
from compress.criteria.unit_criterion import ScoringData, UnitCriterion
from compress.distill.losses import LossConfig, losses
from compress.graph.build import build_graph
from compress.prune.weights import WeightsConfig, prune_weights
from compress.testing.criteria import check_unit_criterion, check_weight_criterion
from compress.testing.datasets import check_dataset
from compress.testing.evaluators import check_evaluator
from compress.testing.losses import check_loss
from compress.testing.spaces import check_space
from compress.testing.strategies import Rungs
from compress.testing.tasks import check_task
from evaluators.candidates.evaluator import Evaluator, EvaluatorBase, EvaluatorContext
from evaluators.candidates.proxies import ProxyConfig
from evaluators.datasets import Data
from evaluators.datasets.batch import Batch
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.none import NoneConfig
from evaluators.tasks import DEFAULT
from evaluators.tasks.classification import Classification
from spaces.nas_bench_macro import NasBenchMacroSupernet
from spaces.registry import create

OURS = [name for name in unit_criteria if not name.startswith("nni:")]  # NNI's are tried where NNI is


@pytest.mark.parametrize("name", list(weight_criteria))
def test_shipped_weight_criteria_pass(name: str) -> None:
    check_weight_criterion(name)


@pytest.mark.parametrize("name", OURS)
def test_shipped_unit_criteria_pass(name: str) -> None:
    check_unit_criterion(name)


OF_LAYERS: dict[str, dict[str, Any]] = {"feature": {"layers": {"0": "0"}}}
"""What losses that look at layers have to be told of the models that they are tried out on."""


@pytest.mark.parametrize("name", [name for name in losses if name != "hybrid_attention"])  # its own test has attention
def test_shipped_losses_pass(name: str) -> None:
    check_loss(losses.get(name).model_validate(OF_LAYERS.get(name, {})))


def test_a_shipped_space_passes_in_one_call() -> None:
    check_space("nats_size")
    check_space("nas_bench_macro", {"stem": 4, "depths": (2, 2, 2)})


def test_a_shipped_evaluator_task_and_data_set_pass(tmp_path: Path) -> None:
    context = EvaluatorContext(create("nats_size"), None, "cpu", 0, tmp_path)
    check_evaluator(ProxyConfig(scores=["params"]), context)
    check_dataset(DigitsConfig(name="digits", limit_train=40, limit_test=20, batch_size=8))
    check_dataset(NoneConfig(name="none"))
    check_task(DEFAULT.bind(7, (3, 8, 8)), *judged())


def judged() -> tuple[Batch, Any]:
    """A batch of images and a model of seven classes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 8 * 8, 7, generator=generator).requires_grad_()
    batch = Batch(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 7)
    return batch, lambda part: part.inputs.flatten(1) @ weight


class Signed(WeightCriterion):
    """Forgets the magnitude."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight


class Restless(WeightCriterion):
    """Draws from a generator of its own."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(weight.shape)


class Generous(Signed):
    """Removes nothing."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.abs()

    def keep(self, weights: Any, remove: int, generator: torch.Generator) -> list[Tensor]:
        return [torch.ones_like(weight, dtype=torch.bool) for weight in weights]


@pytest.fixture
def registered() -> Iterator[Any]:
    """Enter a criterion for single weights for the time of a test."""

    def enter(criterion: Any) -> str:
        weight_criteria.names()
        weight_criteria._items["wrong"] = criterion
        return "wrong"

    yield enter
    weight_criteria._items.pop("wrong", None)


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        (Signed, "criterion wrong gives scores below 0"),
        (Restless, "criterion wrong gives other scores with the same generator"),
        (Generous, "criterion wrong removes 0 weights where 1 are asked"),
    ],
)
def test_a_wrong_weight_criterion_is_caught(registered: Any, criterion: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_weight_criterion(registered(criterion))


class InPlace(WeightCriterion):
    """Changes what it scores."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.abs_()


class PerRow(WeightCriterion):
    """One number for each output."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.abs().mean(1)


class Ranks(WeightCriterion):
    """Whole numbers."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.flatten().argsort().view_as(weight)


class Infinite(WeightCriterion):
    """NaN for weights of 0."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight / 0.0


@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}])
@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        (Signed, r"Signed gives scores below 0 \(down to -"),
        (Generous, "'magnitude' removes 0 weights of fc.weight; wanted 16"),
        (InPlace, "InPlace changes the weights that it scores"),
        (PerRow, r"PerRow gives torch.float32 \(4,\) for weights \(4, 8\); allowed: a float for each"),
        (Ranks, "Ranks gives torch.int64"),
        (Infinite, "Infinite gives NaN or infinite scores"),
    ],
)
def test_a_wrong_weight_criterion_prunes_nothing(
    monkeypatch: pytest.MonkeyPatch, criterion: Any, asked: Any, says: str
) -> None:
    if asked == {"pattern": "2:4"} and criterion in (Signed, Generous):
        return  # a pattern goes by the order of the scores alone
    model = nn.ModuleDict({"fc": nn.Linear(8, 4)})
    monkeypatch.setitem(weight_criteria._items, "magnitude", criterion)
    config = WeightsConfig(criterion="magnitude", modules={"fc": ["fc.weight"]}, **asked)
    with pytest.raises(InputError, match=rf"^prune.criterion: {says}"):
        prune_weights(model, config)


class Halving(UnitCriterion):
    """Scores half of the units."""

    def scores(self, model: nn.Module, groups: Any, data: Any) -> dict[str, Tensor]:
        return {group.name: torch.ones(group.size // 2) for group in groups}


class Zeroing(UnitCriterion):
    """Tries units out, and does not put them back."""

    def scores(self, model: nn.Module, groups: Any, data: Any) -> dict[str, Tensor]:
        next(model.parameters()).data.mul_(0)
        next(model.parameters()).detach().zero_()
        return {group.name: torch.ones(group.size) for group in groups}


class Nothing(UnitCriterion):
    """Forgets to return."""

    def scores(self, model: nn.Module, groups: Any, data: Any) -> Any:
        return None


class Forgetting(UnitCriterion):
    """Leaves a group out."""

    def scores(self, model: nn.Module, groups: Any, data: Any) -> dict[str, Tensor]:
        return {group.name: torch.ones(group.size).double() for group in groups[1:]}


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        (Forgetting, "Forgetting gives NoneType for '0:channels'; allowed: a number for each of its 8 units"),
        (Halving, r"Halving gives a tensor \(4,\) for '0:channels'"),
        (Zeroing, "Zeroing changes the weights of the model"),
        (Nothing, "Nothing gives NoneType for"),
    ],
)
def test_a_wrong_unit_criterion_prunes_nothing(criterion: Any, says: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Flatten(), nn.Linear(12, 5)).eval()
    graph = build_graph(model, torch.randn(1, 3, 1, 1))
    with pytest.raises(InputError, match=rf"^prune.criterion: {says}"):
        score_units(model, graph, criterion(), ScoringData(graph))


class Leaving(UnitCriterion):
    """Leaves gradients in the model."""

    def scores(self, model: nn.Module, groups: Any, data: Any) -> dict[str, Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        return {group.name: torch.ones(group.size).double() for group in groups}


@pytest.mark.parametrize(
    ("criterion", "says"),
    [(Forgetting, "a number for each of its 8 units"), (Leaving, "leaves gradients behind")],
)
def test_a_wrong_unit_criterion_is_caught(criterion: type[UnitCriterion], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_unit_criterion(criterion())


class Deaf(LossConfig):
    loss: Literal["deaf"] = "deaf"

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return teacher.sum()


class Several(Deaf):
    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square()


@pytest.mark.parametrize(("kind", "says"), [(Deaf, "gives the student no gradient"), (Several, "no finite scalar")])
def test_a_wrong_loss_is_caught(kind: type[LossConfig], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_loss(kind())


@pytest.mark.parametrize(
    ("method", "wrong", "says"),
    [
        ("cost", lambda *_: {"params": 1, "macs": 1}, r"predicts {'params': 1, 'macs': 1}"),
        ("mutate", lambda arch, generator: arch, r"a mutation of .* changes nothing"),
        ("to_code", lambda arch: "012012", r"the code 012012 is of another architecture"),
        ("count", lambda: 3, r"counts 3 architectures and lists"),
        ("build", lambda *_: nn.Identity(), r"the network has {'params': 0, 'macs': 0}"),
    ],
)
def test_a_wrong_space_is_caught(monkeypatch: pytest.MonkeyPatch, method: str, wrong: Any, says: str) -> None:
    space = create("nas_bench_macro", {"stem": 4, "depths": (2, 2, 2)})
    monkeypatch.setattr(space, method, wrong)
    with pytest.raises(AssertionError, match=says):
        check_space(space)


@pytest.mark.parametrize(
    ("weigh", "says"),
    [
        (lambda weights: weights | {"layer2": dict.fromkeys(weights["layer2"], torch.tensor(1.0))}, "of layer2"),
        (lambda weights: {name: {each: 2 * w for each, w in some.items()} for name, some in weights.items()}, "away"),
    ],
)
def test_a_wrong_mixture_is_caught(monkeypatch: pytest.MonkeyPatch, weigh: Any, says: str) -> None:
    mix = NasBenchMacroSupernet._mix
    monkeypatch.setattr(NasBenchMacroSupernet, "_mix", lambda net, weights: mix(net, weigh(weights)))
    with pytest.raises(AssertionError, match=says):
        check_space("nas_bench_macro", {"stem": 4, "depths": (2, 2)})
    monkeypatch.setattr(NasBenchMacroSupernet, "_mix", mix)
    monkeypatch.setattr(NasBenchMacroSupernet, "expected_macs", lambda net, weights: weights["layer1"].sum())
    with pytest.raises(AssertionError, match=r"expects 1\.0 MACs"):
        check_space("nas_bench_macro", {"stem": 4, "depths": (2, 2)})


class Moody(EvaluatorBase):
    kind: Literal["moody"] = "moody"

    def make(self, context: EvaluatorContext) -> Evaluator:
        class Random(Evaluator):
            metrics = ("top1",)

            def evaluate(self, arch: Any, wanted: Any, seed: int, report: Any = None) -> Any:
                return {"top1": random.random()}

        return Random()


def test_a_wrong_evaluator_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"evaluator moody gives .* for one architecture"):
        check_evaluator(Moody(), EvaluatorContext(Rungs(Rungs.Config()), None, "cpu", 0, tmp_path))


class Shrunk(DigitsConfig):
    """Says it has more classes than there are."""

    def describe(self) -> Any:
        return type(super().describe())(11, 32, 3)


class Stuck(DigitsConfig):
    """Every epoch is the first."""

    def load(self, *arguments: Any, **options: Any) -> Data:
        data = super().load(*arguments, **options)
        assert data.train is not None
        first = data.train.epoch
        data.train.epoch = lambda epoch, start=0: first(0, start)  # type: ignore[method-assign]
        return data


@pytest.mark.parametrize(
    ("kind", "says"), [(Shrunk, "describes 11 classes and opens 10"), (Stuck, "all epochs are the same")]
)
def test_a_wrong_data_set_is_caught(kind: type[DigitsConfig], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_dataset(kind(name="digits", limit_train=40, limit_test=20, batch_size=8))


class Forgetful(Classification):
    def meter(self) -> Any:
        meter = super().meter()
        update = meter.update

        def last(outputs: Any, batch: Batch) -> None:
            vars(meter).update(total=0, top1=0, top5=0, loss=0.0)
            update(outputs, batch)

        meter.update = last  # type: ignore[method-assign]
        return meter


def test_a_wrong_task_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"of one batch and .* of the same samples in two"):
        check_task(Forgetful(7, (3, 8, 8)), *judged())
