from __future__ import annotations

import json
import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import evaluators.candidates.latency_survey
from compress.cli import app
from compress.core.errors import InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.latency import QuickLatencyConfig, SearchLatency
from evaluators.candidates.latency_survey import Fit, _chosen, survey
from evaluators.latency.table import LatencyTable, Row, rows_of
from spaces.architecture import Architecture
from spaces.registry import create, open_preset
from spaces.space import Space


def tiny() -> Space:
    return open_preset("mobilenetv3", "tiny")[0]


def true_ms(row: Row) -> float:
    """A law for each kind, and deviations of single blocks that no law explains."""
    law = 0.001 + row.macs / 1e9 * len(row.kind) + row.out_channels * row.size**2 / 4e7
    return law * (1.0 + 0.3 * ((row.macs // 16) % 5 == 0))


class Synthetic:
    """Stands in for the meter: latencies by `true_ms`, moved by 0.5 % of noise, and a third of them by up to 40 %."""

    asked = 0

    def __init__(self, config: Any, space: Space, directory: Path, seed: int, keep_files: bool) -> None:
        self.space, self.noise = space, random.Random(seed)
        self.known: dict[Architecture, list[float]] = defaultdict(list)

    def times(self, arch: Architecture) -> list[float]:
        return self.known[arch]

    def measure_again(self, arch: Architecture) -> None:
        self.known[arch].append(self._time(arch))

    def _time(self, arch: Architecture) -> float:
        Synthetic.asked += 1
        return (0.01 + sum(map(true_ms, rows_of(self.space, arch)))) * self._noise()

    def _noise(self) -> float:
        return self.noise.gauss(1, 0.005) + self.noise.uniform(0, 0.4) * (self.noise.random() < 0.3)

    def environment(self, arch: Architecture) -> dict[str, Any]:
        return {"cpu": "synthetic"}


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    Synthetic.asked = 0
    monkeypatch.setattr(evaluators.candidates.latency_survey, "MeasuredLatency", Synthetic)


def table(space: Space, folder: Path, networks: int = 80, check: int = 20) -> LatencyTable:
    return survey(space, QuickLatencyConfig(), "least", networks, check, 0, folder)


def test_rows_cover_the_network_and_know_their_input() -> None:
    space = tiny()
    arch = space.sample(random.Random(0))
    rows = rows_of(space, arch)
    assert sum(row.macs for row in rows) == space.cost(arch)["macs"]
    assert (rows[0].in_channels, rows[0].in_size) == (3, 32)
    assert all((b.in_channels, b.in_size) == (a.out_channels, a.size) for a, b in pairwise(rows))
    assert Row("mbconv k3 e2.5 se", 8, 8, 8, 8, 1, 0, 0).kind == "mbconv k3 se"


@pytest.mark.usefixtures("synthetic")
def test_a_survey_finds_what_blocks_take(tmp_path: Path) -> None:
    space = tiny()
    found = table(space, tmp_path)
    assert 200 < Synthetic.asked < 300
    error = found.error
    assert error.networks == 20 and error.median < 0.01 and error.p90 < 0.02
    assert error.median <= error.p90 <= error.max and error.mean <= error.max
    assert found.error.spearman > 0.98
    assert found.environment == {"cpu": "synthetic"} and (found.target, found.threads, found.img_size) == (
        "local",
        1,
        32,
    )
    assert all(block.latency_ms >= 0 for block in found.blocks)
    assert max(block.seen for block in found.blocks) == 80


@pytest.mark.usefixtures("synthetic")
def test_a_table_survives_its_file_and_predicts_for_a_search(tmp_path: Path) -> None:
    space = tiny()
    table(space, tmp_path).save(tmp_path / "table.json")
    config = SearchLatency(mode="table", table=str(tmp_path / "table.json"))
    meter = config.make(EvaluatorContext(space, None, "cpu", 0, tmp_path / "evaluations"))
    generator = random.Random(77)
    for _ in range(10):
        arch = space.sample(generator)
        expected = 0.01 + sum(map(true_ms, rows_of(space, arch)))
        assert meter.free(arch)["latency_ms"] == meter.measure(arch) == pytest.approx(expected, rel=0.03)
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.usefixtures("synthetic")
def test_blocks_that_are_not_listed_follow_the_law_of_their_kind(tmp_path: Path) -> None:
    space = tiny()
    found = table(space, tmp_path)
    few = found.model_copy(update={"blocks": found.blocks[:3]})
    arch = space.sample(random.Random(5))
    assert few.predict(space, arch) == pytest.approx(found.predict(space, arch), rel=0.2)
    with pytest.raises(InputError, match="no block of the kind"):
        found.predict(create("nats_size"), create("nats_size").sample(random.Random(0)))


@pytest.mark.usefixtures("synthetic")
def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    found = table(tiny(), tmp_path)
    with pytest.raises(InputError, match="is of space mobilenetv3; the search is over nats_size"):
        found.check(create("nats_size"))
    narrow = open_preset("mobilenetv3", "tiny", {"kernels": [3]})[0]
    with pytest.raises(InputError, match=r"for space mobilenetv3 with kernels .*, the search for \[3\]; .* --set"):
        found.check(narrow)
    found.check(tiny())
    space = tiny()
    space.default_task = space.task(img_size=64)
    with pytest.raises(InputError, match=r"for img_size 32, the search for 64; .* --size 64"):
        found.check(space)


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 2}', "[1]"])
def test_a_damaged_table_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(InputError, match=r"latency table .*table\.json"):
        LatencyTable.load(tmp_path / "table.json")
    with pytest.raises(InputError, match="cannot be read"):
        LatencyTable.load(tmp_path / "absent.json")


def test_no_block_takes_less_than_no_time() -> None:
    space = tiny()
    generator = random.Random(0)
    rows = [rows_of(space, space.sample(generator)) for _ in range(30)]
    fit = Fit(rows, np.array([generator.uniform(0.5, 1.5) for _ in rows]))  # no relation at all
    assert fit.constant >= 0 and all(fit.row_ms(row) >= 0 for each in rows for row in each)


@pytest.mark.usefixtures("synthetic")
@pytest.mark.parametrize("seed", range(3))
def test_few_networks_meet_every_kind_of_block(tmp_path: Path, seed: int) -> None:
    space = create("mnasnet")
    found = survey(space, QuickLatencyConfig(), "least", 10, 5, seed, tmp_path)
    generator = random.Random(100 + seed)
    assert all(found.predict(space, space.sample(generator)) > 0 for _ in range(200))


def test_networks_that_bring_a_new_kind_are_fitted_to() -> None:
    rows = {name: Row(f"{name} k1", 1, 1, 1, 1, 1, 0, 0) for name in "abcd"}
    pool = {Architecture({"n": number}): [rows[name]] for number, name in enumerate("aaaaabaacaaaad")}
    drawn = [arch["n"] for arch in _chosen(pool, 5, 3)]
    assert set(drawn[:5]) >= {0, 5, 8, 13} and len(set(drawn)) == 8
    with pytest.raises(InputError, match="4 networks are needed to meet all 4 kinds of blocks; raise --networks"):
        _chosen(pool, 3, 3)


@pytest.mark.usefixtures("synthetic")
def test_too_small_a_space_says_so(tmp_path: Path) -> None:
    space = create("nas_bench_macro", {"depths": (1, 1)})
    with pytest.raises(InputError, match="too few different networks: 9 found, 100 asked for"):
        table(space, tmp_path)


@pytest.mark.usefixtures("synthetic")
def test_the_command_writes_the_table_and_says_how_good_it_is(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    call = ["latency-table", "--space", "mobilenetv3", "--preset", "tiny", "--size", "16", "-o", str(output), "--quiet"]
    done = CliRunner().invoke(app, [*call, "--set", "kernels=[3]", "--networks", "40"])
    assert done.exit_code == 0, done.output
    assert "from 40 networks  off by 0." in done.output and "on 20 others" in done.output
    content = json.loads(output.read_text())
    assert content["schema"] == 1 and content["img_size"] == 16 and content["options"]["kernels"] == [3]
    assert not list(tmp_path.glob(".table*"))
    shown = CliRunner().invoke(app, [*call, "--json"])
    assert json.loads(shown.stdout)["error"]["networks"] == 20


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--space", "mobilenet3"], "did you mean 'mobilenetv3'"),
        (["--space", "mobilenetv3", "--target", ""], "--target"),
        (["--space", "mobilenetv3", "--target", "{kind: lokal}"], "--target  unknown value"),
        (["--space", "mobilenetv3", "--target", "{kind: local"], "--target  is not YAML; got '{kind: local'"),
        (["--space", "mobilenetv3", "--target", "ray:"], "--target  out of range"),
        (["--space", "mobilenetv3", "--statistic", "mean"], "--statistic"),
        (["--space", "mobilenetv3", "--statistic", "cpu_p50", "--threads", "2"], "--threads  statistic: cpu_p50 is"),
        (["--space", "mobilenetv3", "--threads", "1000"], "--threads"),
        (["--space", "mobilenetv3", "--set", "kernal=[3]"], "option kernal: unknown key"),
    ],
)
def test_wrong_flags_are_named(tmp_path: Path, flags: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["latency-table", *flags, "-o", str(tmp_path / "table.json")])
    assert done.exit_code == 2 and sentence in done.output


def test_a_folder_as_output_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["latency-table", "--space", "mobilenetv3", "-o", str(tmp_path)])
    assert done.exit_code == 2 and "is a directory; name a file in it" in done.output
    done = CliRunner().invoke(app, ["latency-table", "--space", "mobilenetv3", "--target", "", "-o", "table.json"])
    assert done.output.strip() == "--target  an empty command; expected one such as 'ssh host python3 -'; got \"\""


@pytest.mark.slow
def test_an_interrupted_survey_of_real_networks_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = tiny()
    quick = QuickLatencyConfig(runs=3, seconds=0, max_seconds=1)
    import evaluators.candidates.latency as meter

    timed, real = [], meter.record

    def killed(path: Path, config: Any) -> Any:
        if len(timed) == 4:
            raise KeyboardInterrupt
        timed.append(path)
        return real(path, config)

    monkeypatch.setattr(meter, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        survey(space, quick, "least", 4, 2, 0, tmp_path)
    timed.append(Path())
    found = survey(space, quick, "least", 4, 2, 0, tmp_path)
    assert 4 + 1 + 2 + 6 <= len(timed) <= 4 + 1 + 2 + 3 * 6  # two to four times each
    assert len(set(timed[5:])) == 6 and all(file.parent == tmp_path / "networks" for file in timed[5:])
    assert found.error.median < 0.5 and found.environment["onnxruntime"]
