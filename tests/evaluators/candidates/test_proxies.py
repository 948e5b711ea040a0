from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.proxies import SCORES, ProxyConfig, ProxyEvaluator, Ranks
from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from spaces.registry import open_preset
from spaces.space import Space


@pytest.fixture(scope="module")
def space() -> Space:
    opened = open_preset("mobilenetv3", "tiny")[0]
    opened.default_task = opened.task(10, 3, 16)
    return opened


def context(space: Space, folder: Path) -> EvaluatorContext:
    data = DigitsConfig(name="digits", image_size=16, limit_train=100, batch_size=20).load(DEFAULT, seed=0)
    return EvaluatorContext(space, data, "cpu", 0, folder)


def make(context: EvaluatorContext, **options: Any) -> ProxyEvaluator:
    found = ProxyConfig.model_validate({"reference": 12, "batch": 16, **options}).make(context)
    assert isinstance(found, ProxyEvaluator)
    return found


def test_only_what_is_wanted_is_scored_and_it_is_finite(space: Space, tmp_path: Path) -> None:
    arch, ours = space.sample(random.Random(0)), make(context(space, tmp_path))
    assert set(ours.metrics) == {*SCORES, "proxy"}
    for name in SCORES:
        found = ours.evaluate(arch, (name,), 0)
        assert set(found) == {name} and np.isfinite(found[name])
        assert found == make(context(space, tmp_path)).evaluate(arch, (name,), 0)
    assert ours.evaluate(arch, ("macs",), 0) == {"macs": space.cost(arch)["macs"]}
    assert ours.evaluate(arch, ("synflow",), 1) != ours.evaluate(arch, ("synflow",), 0)


def test_synflow_grows_with_the_network(space: Space, tmp_path: Path) -> None:
    generator = random.Random(0)
    ours = make(context(space, tmp_path))
    found = [ours.evaluate(space.sample(generator), ("params", "macs", "synflow"), 0) for _ in range(25)]
    assert spearmanr([each["params"] for each in found], [each["synflow"] for each in found]).statistic > 0.5


def test_proxy_is_the_mean_rank_among_a_sample_that_is_scored_once(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make(context(space, tmp_path), scores=["synflow", "macs"])
    arch = space.sample(random.Random(3))
    found = ours.evaluate(arch, ("proxy",), 0)
    drawn = random.Random(0)
    sample = [ours.evaluate(space.sample(drawn), ("synflow", "macs"), 0) for _ in range(12)]
    ranks = [Ranks([each[name] for each in sample])(found[name]) for name in ("synflow", "macs")]
    assert found["proxy"] == pytest.approx(sum(ranks) / 2)
    product = make(context(space, tmp_path), scores=["synflow", "macs"], combine="rank_product")
    monkeypatch.setattr(product, "_reference", None)  # the sample is in proxies.jsonl
    assert product.evaluate(arch, ("proxy",), 0)["proxy"] == pytest.approx(ranks[0] * ranks[1])


def test_without_images_only_scores_that_need_none(space: Space, tmp_path: Path) -> None:
    bare = replace(context(space, tmp_path), data=None)
    with pytest.raises(InputError, match=r"search.evaluator.scores: naswot needs training images"):
        make(bare)
    ours = make(bare, scores=["synflow"])
    assert set(ours.metrics) == {"params", "macs", "synflow", "proxy"}
    assert 0 < ours.evaluate(space.sample(random.Random(0)), ("proxy",), 0)["proxy"] < 1


def test_more_images_than_there_are_is_an_error(space: Space, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.evaluator\.batch: got 101; the data have 100 training images"):
        make(context(space, tmp_path), batch=101).evaluate(space.sample(random.Random(0)), ("naswot",), 0)


def test_scores_beyond_float32_are_worst(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([float("nan"), float("inf"), *map(float, range(10))])
    ours = make(context(space, tmp_path), scores=["synflow"])
    monkeypatch.setattr(ours, "_scores", lambda arch, names, seed: {"synflow": next(values)})
    ranks = ours._ranks(0)["synflow"]  # of nan, inf and 0 to 9
    assert [ranks(value) for value in (float("nan"), float("inf"), 0, 9)] == pytest.approx([0, 0, 1 / 11, 10 / 11])
    assert make(context(space, tmp_path), scores=["synflow"])._ranks(0)["synflow"](9) == ranks(9)
    assert Ranks([float("nan")])(1) > Ranks([float("nan")])(0)


def test_ranks_grow_strictly_within_and_beyond_the_sample() -> None:
    ranks = Ranks([3.0, 1.0, 2.0, 2.0])
    assert [ranks(value) for value in (1, 2, 3)] == pytest.approx([1 / 5, 2.5 / 5, 4 / 5])
    found = [ranks(value) for value in (-1e9, -5, 0.5, 1, 1.5, 2, 2.5, 3, 3.1, 10, 1e9)]
    assert found == sorted(found) and len(set(found)) == len(found)
    assert found[0] > 0 and found[-1] < 1
    alike = Ranks([0.0, 0.0])
    assert alike(0) == 0.5 and alike(1) > 0.5 > alike(-1)


def test_networks_that_give_no_tensor_have_only_scores_that_need_none(tmp_path: Path) -> None:
    detectors = open_preset("leyolo", "digits")[0]
    bare = EvaluatorContext(detectors, None, "cpu", 0, tmp_path)
    assert make(bare, scores=["synflow"]).metrics == ("params", "macs")
    assert set(make(bare, scores=["params", "macs"]).metrics) == {"params", "macs", "proxy"}
