from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_families import edited, small_family, timed_at
from typer.testing import CliRunner

import compress
from compress.bundle import Bundle
from compress.cli import app
from compress.sorted.family import Family
from compress.sorted.timing import timed
from evaluators.latency.measure import LatencyConfig, record

QUICK = LatencyConfig(runs=20, seconds=0, max_seconds=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    small_family(folder)
    return folder


def pick(*words: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, ["pick", "--quiet", *map(str, words)])
    assert found.exit_code == code, found.output
    return found.output


def test_the_best_within_the_budget_is_a_model_of_its_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    told = json.loads(pick(run, "--macs", "0.6", "--json", "--out", out))
    family = Family.load(run)
    limit = 0.6 * family.full.macs
    assert told == json.loads((out / "pick.json").read_text())
    assert told["macs"] <= limit
    assert told["metrics"]["top1"] == max(each.metrics["top1"] for each in family.members if each.macs <= limit)
    assert told["budget"] == {"macs": "0.6"}

    family.folder.rename(run / "away")  # the bundle needs nothing of the family
    try:
        model = compress.load(out)
        bundle = Bundle.load(out)
    finally:
        (run / "away").rename(family.folder)
    assert bundle.base.name == "cifar_resnet20"
    assert [each.kind for each in bundle.transforms] == ["narrow"]
    assert sum(p.numel() for p in model.parameters()) == told["params"] == bundle.metrics["params"]
    assert bundle.metrics["top1"] == told["metrics"]["top1"]
    assert bundle.metrics["onnx_bytes"] == told["onnx_bytes"] == (out / "model.onnx").stat().st_size
    images = torch.randn(3, *bundle.preprocessing.input_size)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    (logits,) = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)


def test_the_whole_front_is_written_with_an_index(run: Path, tmp_path: Path) -> None:
    lines = pick(run, "--all-fronts", "--out", tmp_path / "front").splitlines()
    family = Family.load(run)
    index = json.loads((tmp_path / "front" / "index.json").read_text())
    assert [each["member"] for each in index["members"]] == list(family.front)
    assert len(lines) == len(family.front)
    files = {each["file"]: each["onnx_bytes"] for each in index["members"]}
    assert {path.name: path.stat().st_size for path in (tmp_path / "front").glob("*.onnx")} == files


def test_by_default_it_lies_in_the_run_under_its_budget(run: Path) -> None:
    assert str(run / "picks" / "macs-1_params-0.9") in pick(run, "--macs", "1", "--params", "0.9")
    assert Bundle.load(run / "picks" / "macs-1_params-0.9").metrics["params"] <= 0.9 * Family.load(run).full.params
    place = run / "picks" / "macs-1_params-0.9"
    (place / "model.onnx").write_bytes(b"")
    pick(run, "--macs", "1", "--params", "0.9")  # an earlier pick is replaced, and nothing else
    assert (place / "model.onnx").stat().st_size > 1000
    (place / "pick.json").unlink()
    said = pick(run, "--macs", "1", "--params", "0.9", code=2)
    assert said.startswith(f"pick  {place} is there already") and "with --out" in said
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--latency", "3.5MB"], "--latency  not in a unit of latency"),
        (["--macs", "0.001"], "the smallest of the members takes"),
        (["--latency", "1ms"], "--latency  no member's latency was measured; add --measure"),
        ([], "pick: got no budget"),
        (["--macs", "0.5", "--all-fronts"], "pick: got both a budget and --all-fronts"),
        (["--macs", "0.5", "--measure"], "--measure  goes with --latency or --size"),
    ],
)
def test_what_cannot_be_picked_is_one_sentence(run: Path, words: list[str], said: str, tmp_path: Path) -> None:
    output = pick(run, *words, "--out", tmp_path / "none", code=2)
    assert said in output
    assert len(output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_family_or_the_target_is_there_nothing_is_written(run: Path, tmp_path: Path) -> None:
    assert "holds no family/family.json" in pick(tmp_path, "--macs", "0.5", code=2)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    assert "is there already" in pick(run, "--macs", "0.5", "--out", tmp_path / "there", code=2)
    assert "is a file" in pick(run, "--macs", "0.5", "--out", tmp_path / "file" / "below", code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_members_near_the_front_are_timed_in_turns_and_a_latency_is_a_budget(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    run = tmp_path_factory.mktemp("timed")
    family = timed(small_family(run), QUICK, most=3)
    family.save()
    known = [each for each in family.members if each.latency_ms is not None]
    assert len(known) == 3 and family.full in known
    assert all(each.onnx_bytes and each.latency_ms["runs"] >= 20 for each in known if each.latency_ms)  # type: ignore[index]
    times = sorted(each.cost("latency") or 0.0 for each in known)
    low, high = max(itertools.pairwise(times), key=lambda pair: pair[1] / pair[0])
    limit = (low * high) ** 0.5  # halfway between two members, so that what else the machine does is not what counts
    told = json.loads(pick(run, "--latency", f"{limit}ms", "--json", "--out", run / "small"))
    fits = [each for each in known if (each.cost("latency") or 0.0) <= limit]
    assert told["metrics"]["top1"] == max(each.metrics["top1"] for each in fits)
    assert Bundle.load(run / "small").metrics["latency_ms"] == told["latency_ms"]
    again = record(run / "small" / "model.onnx", QUICK)  # in a process of its own
    assert again.min <= limit  # the run that other work of the machine disturbed least


def test_members_without_figures_are_measured_from_the_best_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("measured")
    family = small_family(run)
    (run / "recipe.yaml").write_text(
        "version: 1\nname: x\nmodel: {source: builtin, name: cifar_resnet20}\ndata: {name: none}\n"
        "export: {}\nlatency: {runs: 3, seconds: 0, max_seconds: 1}\n"
    )
    ranked = sorted(range(len(family.members)), key=family.rank)
    members = json.loads((family.folder / "family.json").read_text())["members"]
    for place in (ranked[0], ranked[-1]):  # known: too slow, and fast enough
        members[place]["latency_ms"] = timed_at(1e6 if place == ranked[0] else 1e-3)
        members[place]["onnx_bytes"] = 1
    edited(run, members=members)
    told = json.loads(pick(run, "--latency", "60s", "--measure", "--json", "--out", run / "small"))
    assert told["member"] == ranked[1]
    after = Family.load(run)
    assert [place for place in ranked if after.members[place].latency_ms is None] == ranked[2:-1]


def test_it_takes_less_than_five_seconds(run: Path, tmp_path: Path) -> None:
    """Of the processor, since other tests run at the same time; it measures nothing and trains nothing."""
    started = time.process_time()
    pick(run, "--macs", "0.5", "--out", tmp_path / "small")
    assert time.process_time() - started < 5
