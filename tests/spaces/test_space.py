from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pydantic import Field
from scipy import stats
from torch import nn

from compress.core.config import Config
from compress.core.errors import InputError
from evaluators.tasks import Task
from spaces.architecture import Architecture, Choice, Decision, where
from spaces.layers import Layer, conv, linear
from spaces.space import Space, drawn_by, task_of


class Options(Config):
    width: int = Field(4, ge=1, description="channels of every layer")


class Toy(Space):
    """A chain of one to three convolutions, each with its kernel; a pooling that may have a size."""

    Config = Options
    default_task = task_of(num_outputs=3, in_chans=2, img_size=8)
    rows = True

    def _decisions(self) -> list[Decision]:
        decisions = [Decision("depth", (1, 2, 3)), Decision("kernel0", (1, 3))]
        decisions += [Decision(f"kernel{layer}", (1, 3), where("depth", *range(layer + 1, 4))) for layer in (1, 2)]
        return [*decisions, Decision("pool", ("none", "max")), Decision("size", (2, 4), where("pool", "max"))]

    def _kernels(self, arch: Architecture) -> list[int]:
        return [arch.number(f"kernel{layer}") for layer in range(arch.number("depth"))]

    def _build(self, arch: Architecture, task: Task) -> nn.Module:
        channels, layers = task.in_chans, list[nn.Module]()
        for kernel in self._kernels(arch):
            layers.append(nn.Conv2d(channels, self.config.width, kernel, padding="same"))
            channels = self.config.width
        layers += [nn.MaxPool2d(arch.number("size"))] if arch["pool"] == "max" else []
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, task.num_outputs))

    def _layers(self, arch: Architecture, task: Task) -> list[Layer] | None:
        if not self.rows:
            return None
        rows, channels = [], task.in_chans
        for index, kernel in enumerate(self._kernels(arch)):
            cost = conv(channels, self.config.width, kernel, task.img_size, bias=True, norm=False)
            channels = self.config.width
            rows.append(Layer(f"layer{index}", "conv", channels, task.img_size, 1, cost.params, cost.macs))
        head = linear(channels, task.num_outputs)
        return [*rows, Layer("head", "linear", task.num_outputs, 1, task.img_size, head.params, head.macs)]

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        if not isinstance(code, str):
            return super().from_code(code)
        return {"depth": len(code), "pool": "none"} | {f"kernel{at}": int(digit) for at, digit in enumerate(code)}


@pytest.fixture
def toy() -> Toy:
    space = Toy(Options())
    space.name = "toy"
    return space


def legal(choices: Mapping[str, Choice]) -> bool:
    """Whether a mapping is an architecture of Toy, said without spaces' own machinery."""
    wanted = {"depth", "pool"} | {f"kernel{layer}" for layer in range(int(choices["depth"]))}
    allowed = {"depth": (1, 2, 3), "pool": ("none", "max"), "size": (2, 4)}
    wanted |= {"size"} if choices["pool"] == "max" else set()
    return set(choices) == wanted and all(choices[name] in allowed.get(name, (1, 3)) for name in choices)


def everything() -> list[dict[str, Choice]]:
    found = []
    for depth, pool in itertools.product((1, 2, 3), ("none", "max")):
        for kernels in itertools.product((1, 3), repeat=depth):
            for size in (2, 4) if pool == "max" else (None,):
                choices: dict[str, Choice] = {"depth": depth, "pool": pool}
                choices |= {f"kernel{at}": kernel for at, kernel in enumerate(kernels)}
                found.append(choices | ({} if size is None else {"size": size}))
    return found


def test_enumerates_every_architecture_once(toy: Toy) -> None:
    listed = list(toy)
    assert len(listed) == toy.count() == len(everything()) == len(set(listed))
    assert set(listed) == {Architecture(choices) for choices in everything()}
    assert all(legal(arch) for arch in listed)


def test_samples_every_architecture_with_the_same_probability(toy: Toy) -> None:
    generator = random.Random(0)
    counts = Counter(toy.sample(generator) for _ in range(200 * toy.count()))
    assert len(counts) == toy.count()
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_sampling_follows_the_generator(toy: Toy) -> None:
    assert [toy.sample(random.Random(seed)) for seed in range(9)] == [toy.sample(random.Random(s)) for s in range(9)]


def test_mutations_change_one_decision_and_stay_legal(toy: Toy) -> None:
    generator, arch, seen = random.Random(0), next(iter(toy)), set[Architecture]()
    for _ in range(5000):
        changed = toy.mutate(arch, generator)
        assert legal(changed) and changed != arch and toy.check(dict(changed)) == changed
        differing = {name for name in arch.keys() & changed.keys() if arch[name] != changed[name]}
        assert len(differing) == 1
        arch = changed
        seen.add(arch)
    assert len(seen) == toy.count()


def test_neighbours_are_all_architectures_one_change_away(toy: Toy) -> None:
    for arch in toy:
        near = list(toy.neighbours(arch))
        assert len(near) == sum(len(decision.choices) - 1 for decision in toy.decisions if decision.name in arch)
        assert all(legal(each) and each != arch for each in near)
        shared = [{name for name in arch.keys() & each.keys() if arch[name] != each[name]} for each in near]
        assert all(len(names) == 1 for names in shared)


def test_newly_taken_decisions_are_drawn_and_those_not_taken_dropped(toy: Toy) -> None:
    shallow = toy.check({"depth": 1, "kernel0": 3, "pool": "none"})
    drawn = {toy.complete({**shallow, "depth": 2}, drawn_by(random.Random(seed)))["kernel1"] for seed in range(20)}
    assert drawn == set(toy._named["kernel1"].choices)
    deep = toy.complete({**shallow, "depth": 2, "kernel1": 3}, drawn_by(random.Random(0)))
    assert deep["kernel1"] == 3
    assert toy.complete({**deep, "depth": 1}, drawn_by(random.Random(0))) == shallow
    with pytest.raises(InputError, match="kernel0: got 4; allowed 1 or 3"):
        toy.complete({**shallow, "kernel0": 4}, drawn_by(random.Random(0)))


def test_a_space_of_one_architecture_has_no_mutations() -> None:
    class Fixed(Toy):
        def _decisions(self) -> list[Decision]:
            return [Decision("depth", (1,)), Decision("kernel0", (3,)), Decision("pool", ("none",))]

    space = Fixed(Options())
    arch = space.sample(random.Random(0))
    assert space.count() == 1 and space.mutate(arch, random.Random(0)) == arch and not list(space.neighbours(arch))


def test_check_reports_every_problem_at_once(toy: Toy) -> None:
    with pytest.raises(InputError) as caught:
        toy.check({"depth": 2, "kernel0": 5, "kernel2": 3, "pool": "max", "kernal1": 3})
    assert sorted(caught.value.problems) == [
        "kernal1: space toy has no such decision; allowed depth, kernel0, kernel1, kernel2, pool, size; "
        "did you mean 'kernel1'?",
        "kernel0: got 5; allowed 1 or 3",
        "kernel1: missing; allowed 1 or 3",
        "kernel2: got 3; this decision is taken only where depth is 3",
        "size: missing; allowed 2 or 4",
    ]


def test_check_reports_wrong_choices_also_after_one_that_others_hang_on(toy: Toy) -> None:
    with pytest.raises(InputError) as caught:
        toy.check({"depth": 9, "kernel0": 5, "kernel1": 3, "pool": "avg"})
    assert caught.value.problems == [
        "depth: got 9; allowed 1, 2 or 3",
        "kernel0: got 5; allowed 1 or 3",
        "pool: got 'avg'; allowed none or max",
    ]


@pytest.mark.parametrize("choice", [True, "1", None, [1], 1.5])
def test_check_refuses_choices_of_another_type(toy: Toy, choice: object) -> None:
    good = {"depth": 1, "kernel0": 3, "pool": "none"}
    assert toy.check(good) == good
    for given in ({**good, "depth": choice}, Architecture({**good, "depth": choice})):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"depth: got .*; allowed 1, 2 or 3"):
            toy.check(given)


def test_check_turns_whole_floats_of_json_into_the_choice_itself(toy: Toy) -> None:
    exact = toy.check({"depth": 1, "kernel0": 3, "pool": "none"})
    for given in ({"depth": 1.0, "kernel0": 3.0, "pool": "none"}, Architecture({**exact, "depth": 1.0})):
        arch = toy.check(given)
        assert arch == exact and arch.number("depth") == 1


def test_check_drops_untaken_choices_only_where_asked(toy: Toy) -> None:
    full = {"depth": 1, "kernel0": 3, "kernel1": 1, "kernel2": 99, "pool": "none", "size": 2}
    assert toy.check(full, drop_untaken=True) == {"depth": 1, "kernel0": 3, "pool": "none"}
    with pytest.raises(InputError, match="kernel1: got 1; this decision is taken only where depth is 2 or 3"):
        toy.check(full)


def test_check_remembers_legal_architectures_only(toy: Toy) -> None:
    wrong = Architecture({"depth": 1, "kernel0": 3, "pool": "none", "size": 2})
    for _ in range(2):
        with pytest.raises(InputError):
            toy.check(wrong)
    for arch in [*toy, *toy]:
        assert toy.check(arch) == arch


def test_to_dict_survives_json_and_names_options_that_are_not_the_default() -> None:
    space = Toy(Options(width=6))
    space.name = "toy"
    for arch in space:
        written = json.loads(json.dumps(space.to_dict(arch)))
        assert written == {"space": "toy", "options": {"width": 6}, "choices": dict(arch)}
        assert space.parse(written) == space.parse(written["choices"]) == arch
    assert space.parse("131") == {"depth": 3, "kernel0": 1, "kernel1": 3, "kernel2": 1, "pool": "none"}


def test_a_space_without_codes_says_what_it_takes(toy: Toy) -> None:
    with pytest.raises(InputError, match=r"space toy is a mapping of decisions to choices; got \[1, 2\]"):
        toy.parse([1, 2])
    assert toy.to_code(toy.parse("13")) == {"depth": 2, "kernel0": 1, "kernel1": 3, "pool": "none"}


def samplers() -> dict[str, Callable[[Toy], Any]]:
    from optuna import samplers

    grid = {decision.name: list(decision.choices) for decision in Toy(Options()).decisions}
    return {
        "random": lambda toy: samplers.RandomSampler(seed=0),
        "tpe": lambda toy: samplers.TPESampler(seed=0, n_startup_trials=10),
        "grouped tpe": lambda toy: samplers.TPESampler(seed=0, multivariate=True, group=True, n_startup_trials=10),
        "nsga2": lambda toy: samplers.NSGAIISampler(seed=0, population_size=10),
        "grid": lambda toy: samplers.GridSampler(grid, seed=0),
        "brute force": lambda toy: samplers.BruteForceSampler(seed=0),
    }


@pytest.mark.parametrize("name", ["random", "tpe", "grouped tpe", "nsga2", "grid", "brute force"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::UserWarning")
def test_any_sampler_of_optuna_searches_the_space(toy: Toy, name: str) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, found = optuna.create_study(sampler=samplers()[name](toy)), []

    def objective(trial: Any) -> float:
        arch = toy.suggest(trial)
        assert legal(arch) and dict(arch) == trial.params
        found.append(arch)
        return float(toy.cost(arch)["macs"])

    study.optimize(objective, n_trials=60)
    assert len(found) == len(study.trials) or name == "brute force"
    if name == "brute force":
        assert sorted(map(repr, found)) == sorted(map(repr, toy))
    best = toy.check(study.best_params)
    assert toy.cost(best)["macs"] <= sorted(toy.cost(arch)["macs"] for arch in toy)[toy.count() // 4]


def test_every_combination_of_the_distributions_is_legal_without_what_is_not_taken(toy: Toy) -> None:
    pytest.importorskip("optuna")
    distributions = toy.distributions()
    found = set()
    for combination in itertools.product(*(each.choices for each in distributions.values())):
        arch = toy.check(dict(zip(distributions, combination, strict=True)), drop_untaken=True)
        assert legal(arch)
        found.add(arch)
    assert found == set(toy)


@pytest.mark.parametrize("rows", [True, False])
def test_cost_is_that_of_the_built_network(toy: Toy, rows: bool) -> None:
    from evaluators.cost import count_macs, count_params

    toy.rows = rows
    for arch in toy:
        module = toy.build(arch, toy.task(num_outputs=5, in_chans=1, img_size=12)).eval()
        cost = toy.cost(arch, toy.task(num_outputs=5, in_chans=1, img_size=12))
        assert cost == {"params": count_params(module)[0], "macs": count_macs(module, torch.zeros(1, 1, 12, 12))}


def test_builds_for_the_default_task_where_none_is_given(toy: Toy) -> None:
    assert toy.build({"depth": 1, "kernel0": 3, "pool": "none"})(torch.zeros(2, 2, 8, 8)).shape == (2, 3)
    with pytest.raises(InputError, match="kernel0: missing"):
        toy.build({"depth": 1, "pool": "none"})


def test_a_space_without_supernet_says_so(toy: Toy) -> None:
    with pytest.raises(InputError, match="space toy has no supernet"):
        toy.supernet()
