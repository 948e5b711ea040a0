from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.batch_norm import recalibrate
from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.datasets import Data
from evaluators.datasets.digits import DigitsConfig
from evaluators.datasets.holdout import with_holdout
from evaluators.tasks import DEFAULT
from evaluators.tasks.evaluation import evaluate
from search.supernets.evaluator import SupernetEvaluator, SupernetEvaluatorConfig
from search.supernets.method import seeded
from search.supernets.single_path import SinglePath
from search.supernets.trained import TrainedSupernet, fingerprint
from spaces.registry import create, open_preset
from spaces.space import Space


def digits(limit: int = 200) -> Data:
    found = DigitsConfig(name="digits", image_size=16, limit_train=limit, batch_size=40).load(DEFAULT, seed=0)
    assert found is not None
    return found


def save(space: Space, folder: Path, data: Data | None = None) -> None:
    """Save a supernet of `space` with random weights, as if it had been trained on `data`."""
    samples, labels = fingerprint(data or digits())
    with seeded(3):
        supernet = space.supernet(space.default_task)
    method, task = SinglePath(name="single_path"), space.default_task
    TrainedSupernet(space, method, task, 0, 0.2, samples, labels, supernet).save(folder / "supernet")


def make(space: Space, folder: Path, data: Data | None = None, **options: Any) -> SupernetEvaluator:
    context = EvaluatorContext(space, data or digits(), "cpu", 0, folder, None, folder / "supernet")
    found = SupernetEvaluatorConfig.model_validate({"recalibrate": 2, **options}).make(context)
    assert isinstance(found, SupernetEvaluator)
    return found


@pytest.fixture
def space() -> Space:
    opened = open_preset("mobilenetv3", "tiny")[0]
    opened.default_task = opened.task(10, 3, 16)
    return opened


def test_a_recipe_without_a_supernet_is_refused(space: Space, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search.evaluator.weights: missing, and the recipe trains no supernet"):
        make(space, tmp_path)


def test_candidates_have_inherited_weights_and_their_own_statistics(space: Space, tmp_path: Path) -> None:
    save(space, tmp_path)
    arch = space.sample(random.Random(1))
    ours = make(space, tmp_path)
    found = ours.evaluate(arch, ("top1",), 0)
    assert found == make(space, tmp_path, weights=str(tmp_path)).evaluate(arch, ("top1",), 0)
    model = ours.trained.supernet.extract(arch)
    assert ours.data.train is not None and ours.data.test is not None
    recalibrate(model, ours.data.train.epoch(0), 2, forward=ours.data.task.forward)
    assert evaluate(model, ours.data.test, ours.data.task)["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert set(found) == set(ours.metrics)
    assert found["macs"] == space.cost(arch)["macs"]


def test_a_score_does_not_depend_on_what_was_scored_before(space: Space, tmp_path: Path) -> None:
    save(space, tmp_path)
    generator = random.Random(0)
    first, *others = (space.sample(generator) for _ in range(4))
    ours = make(space, tmp_path)
    alone = ours.evaluate(first, (), 0)
    for other in others:
        ours.evaluate(other, (), 0)
    assert ours.evaluate(first, (), 0) == alone


def test_scores_are_kept_for_other_searches_by_the_same_weights(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(space, tmp_path)
    arch = space.sample(random.Random(1))
    found = make(space, tmp_path).evaluate(arch, (), 0)
    again, other = make(space, tmp_path), make(space, tmp_path, recalibrate=1)
    for evaluator in (again, other):
        monkeypatch.setattr(evaluator.rater, "rate", lambda *_: {"top1": 1.0, "top5": 2.0, "loss": 3.0})
    assert again.evaluate(arch, (), 0) == found
    assert other.evaluate(arch, (), 0)["top1"] == 1.0


def test_candidates_are_judged_on_the_samples_that_were_held_out(space: Space, tmp_path: Path) -> None:
    save(space, tmp_path)
    data = digits()
    expected = with_holdout(data, 0.2, 0)
    ours = make(space, tmp_path, data)
    assert ours.data.test is not None and expected.test is not None
    for mine, theirs in zip(ours.data.test.batches(), expected.test.batches(), strict=True):
        assert torch.equal(mine.inputs, theirs.inputs)


def test_encodings_of_one_network_are_worth_the_same(tmp_path: Path) -> None:
    space = create("nas_bench_macro", {"stem": 4, "depths": (3,)})
    space.default_task = space.task(10, 3, 16)
    save(space, tmp_path)
    ours = make(space, tmp_path)
    found = [ours.evaluate(space.parse(code), ("loss",), 0) for code in ("110", "101")]
    assert found[0] == found[1]
    assert ours.evaluate(space.parse("120"), ("loss",), 0) != found[0]


def test_the_winner_may_keep_the_weights_that_it_inherits(space: Space, tmp_path: Path) -> None:
    save(space, tmp_path)
    arch = space.sample(random.Random(1))
    assert make(space, tmp_path).weights_path(arch, 0) is None
    ours = make(space, tmp_path, inherit=True)
    path = ours.weights_path(arch, 0)
    assert path is not None
    from safetensors.torch import load_file

    model = space.build(arch)
    model.load_state_dict(load_file(path))
    assert ours.data.test is not None
    found = evaluate(model, ours.data.test, ours.data.task)["loss"]
    assert found == pytest.approx(ours.evaluate(arch, (), 0)["loss"], rel=1e-5)


def test_another_space_other_data_and_damage_are_errors(space: Space, tmp_path: Path) -> None:
    save(space, tmp_path)
    with pytest.raises(InputError, match=r"trained for another space; differs in: space mobilenetv3, not pooling"):
        make(create("pooling", {}), tmp_path)
    with pytest.raises(InputError, match=r"trained on other data \(200 training images, here 199"):
        make(space, tmp_path, digits(199))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty' holds no trained supernet"):
        make(space, tmp_path, weights=str(tmp_path / "empty"))
    manifest = tmp_path / "supernet" / "supernet.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "method": {"name": "another"}}))
    with pytest.raises(InputError, match=r"search.evaluator.weights: .*supernet.json'  method"):
        make(space, tmp_path)
    manifest.write_text(json.dumps(content))
    (tmp_path / "supernet" / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"search\.evaluator\.weights"):
        make(space, tmp_path)
