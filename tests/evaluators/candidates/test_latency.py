from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import evaluators.candidates.latency
from compress.core.errors import CompressError, InputError
from evaluators.candidates.evaluator import EvaluatorContext
from evaluators.candidates.latency import LatencyMeter, MeasuredLatency, SearchLatency, statistic
from evaluators.latency.measure import METRICS, LatencyRecord, record
from spaces.architecture import Architecture
from spaces.registry import create, open_preset
from spaces.space import Space

FAST = {"runs": 3, "seconds": 0, "max_seconds": 1}


@pytest.fixture(scope="module")
def space() -> Space:
    opened = open_preset("mobilenetv3", "tiny")[0]
    opened.default_task = opened.task(10, 3, 16)
    return opened


def make(space: Space, folder: Path, **options: Any) -> LatencyMeter:
    config = SearchLatency.model_validate({"measure": {**FAST, **options.pop("measure", {})}, **options})
    return config.make(EvaluatorContext(space, None, "cpu", 0, folder))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were timed, in order."""
    files: list[Path] = []

    def counted(path: Path, config: Any) -> Any:
        files.append(path)
        return record(path, config)

    monkeypatch.setattr(evaluators.candidates.latency, "record", counted)
    return files


def test_a_network_is_timed_once_whoever_asks(space: Space, tmp_path: Path, timed: list[Path]) -> None:
    arch = space.sample(random.Random(0))
    first, second = make(space, tmp_path), make(space, tmp_path)
    assert first.free(arch) == {} == second.free(arch)
    latency = first.measure(arch)
    assert 0 < latency < 1000
    assert first.measure(arch) == second.measure(arch) == latency and second.free(arch) == {"latency_ms": latency}
    assert len(timed) == 1 and not timed[0].exists()
    (entry,) = json.loads((tmp_path / "latency.jsonl").read_text()).values()
    assert latency <= entry["record"]["p50"] and entry["choices"] == dict(arch) and "cpu" in entry["environment"]


def test_of_several_timings_the_least_counts(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([3.0, 2.0, 4.0])
    files: list[Path] = []

    def invented(path: Path, config: Any) -> Any:
        files.append(path)
        assert path.is_file()
        values = {"min": next(found), "cpu_min": None, "threads": 1, "provider": "x", "environment": {}}
        return LatencyRecord.model_construct(None, **dict.fromkeys(METRICS, 0.0) | values)

    monkeypatch.setattr(evaluators.candidates.latency, "record", invented)
    arch = space.sample(random.Random(0))
    meter = MeasuredLatency(SearchLatency(), space, tmp_path, keep_files=True)
    assert [meter.measure_again(arch) for _ in range(3)] == [3, 2, 2]
    assert meter.times(arch) == [3, 2, 4] and meter.measure(arch) == 2 and meter.free(arch) == {"latency_ms": 2}
    assert len(set(files)) == 1 and files[0].is_file()


def test_encodings_of_one_network_share_their_latency(tmp_path: Path, timed: list[Path]) -> None:
    space = create("nas_bench_macro", {"stem": 4})
    meter = make(space, tmp_path)
    assert meter.measure(space.parse("11101110")) == meter.measure(space.parse("11110110"))
    assert len(timed) == 1


def test_other_conditions_are_other_latencies(space: Space, tmp_path: Path) -> None:
    arch = space.sample(random.Random(0))
    make(space, tmp_path).measure(arch)
    for options in ({"measure": {"batch": 2}}, {"measure": {"threads": 2}}, {"statistic": "p50"}):
        assert make(space, tmp_path, **options).free(arch) == {}
    larger = open_preset("mobilenetv3", "tiny")[0]
    assert make(larger, tmp_path).free(arch) == {}
    assert make(space, tmp_path, measure={"runs": 5}).free(arch) != {}


def test_another_machine_measures_anew(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = space.sample(random.Random(0))
    make(space, tmp_path).measure(arch)
    here = evaluators.candidates.latency._this_machine()
    monkeypatch.setattr(evaluators.candidates.latency, "_this_machine", lambda: {**here, "cpu": "another"})
    assert make(space, tmp_path).free(arch) == {}


def test_the_least_time_is_cpu_time_where_that_is_one_threads() -> None:
    values = {"min": 3.0, "p50": 4.0, "cpu_min": 2.0, "cpu_p50": 2.5, "threads": 1, "provider": "CPUExecutionProvider"}
    one = LatencyRecord.model_construct(None, **values)
    assert [statistic(one, name) for name in ("least", "p50", "cpu_p50")] == [2.0, 4.0, 2.5]
    for change in ({"threads": 2}, {"provider": "CUDAExecutionProvider"}, {"cpu_min": None}, {"cpu_min": 0.0}):
        assert statistic(one.model_copy(update=change), "least") == 3.0
    with pytest.raises(CompressError, match="no clock for CPU time"):
        statistic(one.model_copy(update={"cpu_p50": None}), "cpu_p50")


def test_a_damaged_cache_names_the_file(space: Space, tmp_path: Path) -> None:
    (tmp_path / "latency.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"latency\.jsonl: cannot be read as JSON"):
        make(space, tmp_path).free(space.sample(random.Random(0)))


def test_a_network_beyond_float32_is_timed_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    space = create("nas_bench_macro", {"stem": 4})
    build = type(space)._build

    def huge(self: Any, arch: Architecture, task: Any) -> Any:
        module = build(self, arch, task)
        with torch.no_grad():
            module.stem.weight.mul_(1e30)
            module.last.weight.mul_(1e30)
        return module

    monkeypatch.setattr(type(space), "_build", huge)
    assert make(space, tmp_path).measure(space.parse("11111111")) > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "table"}, "mode: table needs table: FILE"),
        ({"table": "x.json"}, "only that mode takes one"),
        ({"mode": "table", "table": "x.json", "measure": {"threads": 2}}, "takes neither measure nor statistic"),
        ({"measure": {"input_size": [3, 32, 32]}}, "the image size is that of the space"),
        ({"measure": {"threads": 2}, "statistic": "cpu_p50"}, "is the time of one thread"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SearchLatency.model_validate(options)
