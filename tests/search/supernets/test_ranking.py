"""Which networks are scored, and what a ranking says of the scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from evaluators.datasets.digits import DigitsConfig
from evaluators.tasks import DEFAULT
from search.supernets.block_ratings import BlockRater
from search.supernets.rank_table import ArchitectureLog, Truth
from search.supernets.ranking import RankConfig, Ranking, chosen
from spaces.registry import create
from spaces.space import Space


def config(**values: object) -> RankConfig:
    return RankConfig.model_validate(values)


def test_small_spaces_are_scored_whole_and_large_ones_sampled_without_repeats() -> None:
    pooling, cells = create("pooling", {}), create("nas_bench_201", {})
    assert len(chosen(pooling, config(), None, 0)) == 36
    assert len(chosen(pooling, config(architectures=5), None, 0)) == 5
    for number in (100, 400):
        found = chosen(cells, config(architectures=number), None, 0)
        assert len(found) == len(set(found)) == len({cells.canonical(arch) for arch in found}) == number
    assert chosen(cells, config(), None, 0) == chosen(cells, config(), None, 0)
    assert chosen(cells, config(), None, 0) != chosen(cells, config(), None, 1)


def test_more_networks_are_the_fewer_and_others() -> None:
    cells = create("nas_bench_201", {})
    few, many = (chosen(cells, config(architectures=number), None, 3) for number in (10, 40))
    assert many[:10] == few


@pytest.mark.parametrize("wanted", [20, 13, 12])  # the whole space, and drawn from it
def test_fewer_networks_than_architectures_are_found_and_no_more(wanted: int) -> None:
    space = create("nas_bench_macro", {"depths": [1, 1, 1]})
    first = space.decisions[0].name
    space._canonical = lambda arch: space.check({**arch, first: "identity"})  # type: ignore[method-assign]
    assert space.count() == 27
    assert len(chosen(space, config(architectures=wanted), None, 0)) == 9


def test_the_networks_of_a_table_are_scored_all_or_as_many_as_asked_for() -> None:
    space = create("nats_size", {})
    values = {space.parse(f"{c}:8:8:8:8"): float(c) for c in (8, 16, 24, 32)}
    truth = Truth(values, "acc", "maximize", "t.csv", 4)
    assert set(chosen(space, config(truth="t.csv"), truth, 0)) == set(values)
    assert len(chosen(space, config(truth="t.csv", architectures=3), truth, 0)) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"against": 2}, "allowed 3 or more"),
        ({"against": 4, "truth": "t.csv"}, "give one of both"),
        ({"against": 9, "architectures": 5}, "architectures is 5"),
        ({"architectures": 2}, "greater than or equal to 3"),
    ],
)
def test_settings_that_say_nothing_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**values)


def ranking(
    folder: Path, scores: list[float], truth: list[float] | None, score: str = "top1", macs: list[float] | None = None
) -> Ranking:
    space: Space = create("nats_size", {})
    networks = [space.parse(f"{8 + 8 * (place % 8)}:{8 + 8 * (place // 8)}:8:8:8") for place in range(len(scores))]
    log = ArchitectureLog(folder / "log.csv", space, (score, "macs", "params"))
    for place, (arch, value) in enumerate(zip(networks, scores, strict=True)):
        log.add(arch, {score: value, "macs": macs[place] if macs else 5.0, "params": 7.0})
    known = None
    if truth is not None:
        known = Truth(dict(zip(networks, truth, strict=False)), "acc", "maximize", "t.csv", len(truth))
    return Ranking(space, networks, log, score, "minimize" if score == "loss" else "maximize", known)


def test_a_supernet_that_ranks_worse_than_macs_is_told_so(tmp_path: Path) -> None:
    truth = [float(place) for place in range(20)]
    found = ranking(tmp_path, [(7 * place) % 20 for place in range(20)], truth, macs=truth).record()
    assert [proxy["name"] for proxy in found["proxies"]] == ["supernet, top1", "MACs alone"]  # params are all the same
    assert any("ranks worse" in note and "MACs alone (1.00)" in note for note in found["notes"])


def test_a_supernet_that_ranks_better_is_not_blamed(tmp_path: Path) -> None:
    truth = [float(place) for place in range(20)]
    found = ranking(tmp_path, truth, truth, macs=[(7 * place) % 20 for place in range(20)]).record()
    assert found["notes"] == []
    assert found["proxies"][0]["spearman"] == pytest.approx(1)


def test_few_networks_and_an_interval_around_zero_are_told(tmp_path: Path) -> None:
    few = ranking(tmp_path / "few", [1, 2, 3], [1, 2, 3]).record()["notes"]
    assert few == ["3 networks are few: others of the space may turn these figures round."]
    chance = ranking(tmp_path, [(7 * place) % 20 for place in range(20)], [float(place) for place in range(20)])
    assert any("includes 0" in note for note in chance.record()["notes"])


def test_a_loss_is_better_the_smaller_it_is(tmp_path: Path) -> None:
    found = ranking(tmp_path, [0.4, 0.1, 0.2, 0.3], [60, 90, 80, 70], "loss").record()
    assert found["proxies"][0]["kendall"] == pytest.approx(1)
    assert found["best"][0]["score"] == 0.1 and found["best"][0]["truth"] == 90


def test_raters_say_which_way_their_metrics_are_better() -> None:
    data = DigitsConfig(name="digits", image_size=16, limit_train=20).load(DEFAULT, seed=0)
    assert data is not None
    assert BlockRater([], []).direction("bootstrap_loss", data) == "minimize"
    assert [BlockRater([], []).direction(name, data) for name in ("loss", "top1")] == ["minimize", "maximize"]


def test_scores_that_are_no_numbers_come_last_and_are_null(tmp_path: Path) -> None:
    whole = ranking(tmp_path, [math.nan, 30, math.inf, 10], [90, 80, 20, 10])
    found = json.loads(json.dumps(whole.record(), allow_nan=False))
    assert [row["score"] for row in found["best"]] == [30, 10, None, None]
    assert any("2 score(s) are no finite number" in note for note in found["notes"])


def test_constant_scores_have_no_correlation(tmp_path: Path) -> None:
    found = ranking(tmp_path, [10, 10, 10, 10], [90, 80, 20, 10]).record()
    assert found["proxies"][0]["spearman"] is None
    assert any("no correlation" in note for note in found["notes"])


def test_networks_without_a_true_value_are_scored_and_not_compared(tmp_path: Path) -> None:
    found = ranking(tmp_path, [1, 2, 3, 4, 5], [10, 20, 30]).record()
    assert found["architectures"] == 5 and found["proxies"][0]["architectures"] == 3
    assert any(note.startswith("3 of the 5") for note in found["notes"])
    assert ranking(tmp_path / "none", [1, 2], None).record()["proxies"] == []
