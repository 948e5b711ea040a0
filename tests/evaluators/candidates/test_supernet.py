from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compress.core.batch_norm import recalibrate
from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.supernet import SupernetEvaluator, SupernetEvaluatorConfig
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from spaces.registry import create, open_preset
from spaces.space import Space


def context(space: Space, folder: Path) -> EvaluatorContext:
    data = DigitsConfig(name="digits", image_size=16, limit_train=200, batch_size=40).load(DEFAULT, seed=0)
    return EvaluatorContext(space, data, "cpu", 0, folder)


def make(space: Space, folder: Path, **options: Any) -> SupernetEvaluator:
    found = SupernetEvaluatorConfig.model_validate({"recalibrate": 2, **options}).make(context(space, folder))
    assert isinstance(found, SupernetEvaluator)
    return found


@pytest.fixture
def space() -> Space:
    opened = open_preset("mobilenetv3", "tiny")[0]
    opened.default_task = opened.task(10, 3, 16)
    return opened


def test_an_untrained_supernet_is_refused(space: Space, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search.evaluator.weights: missing; an untrained supernet"):
        make(space, tmp_path)


def test_candidates_have_inherited_weights_and_their_own_statistics(space: Space, tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_file(space.supernet(space.task(10, 3, 16)).state_dict(), tmp_path / "weights.safetensors")
    arch = space.sample(random.Random(1))
    ours = make(space, tmp_path, weights=str(tmp_path))
    found = ours.evaluate(arch, ("top1",), 0)
    assert found == make(space, tmp_path, weights=str(tmp_path / "weights.safetensors")).evaluate(arch, ("top1",), 0)
    model = ours.supernet.extract(arch)
    assert ours.data.train is not None and ours.data.test is not None
    recalibrate(model, ours.data.train.epoch(0), 2, forward=ours.data.task.forward)
    assert evaluate(model, ours.data.test, ours.data.task)["loss"] == found["loss"]
    assert set(found) == set(ours.metrics)
    assert found["macs"] == space.cost(arch)["macs"]


def test_encodings_of_one_network_are_worth_the_same(tmp_path: Path) -> None:
    space = create("nas_bench_macro", {"stem": 4, "depths": (3,)})
    space.default_task = space.task(10, 3, 16)
    ours = make(space, tmp_path, weights="random")
    found = [ours.evaluate(space.parse(code), ("loss",), 0) for code in ("110", "101")]
    assert found[0] == found[1]
    assert ours.evaluate(space.parse("120"), ("loss",), 0) != found[0]


def test_random_weights_depend_on_the_seed(space: Space, tmp_path: Path) -> None:
    arch = space.sample(random.Random(1))
    first, second = (make(space, tmp_path, weights="random").evaluate(arch, (), 0) for _ in range(2))
    assert first == second


def test_weights_of_another_supernet_are_an_error(space: Space, tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit the supernet"):
        make(space, tmp_path, weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        make(space, tmp_path, weights=str(tmp_path / "absent.safetensors"))
