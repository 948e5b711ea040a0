from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_families import edited, member, small_family, timed_at, with_members

from compress.bundle import Bundle
from compress.core.batch_norm import norm_layers
from compress.core.errors import CompressError, InputError
from compress.picking import comparison
from compress.picking.budget import COSTS, Budget
from compress.sorted.family import INDEX, NORMS, WEIGHTS, Family
from compress.sorted.network import NestedNetwork
from compress.sorted.networks import Networks, statistics_of
from compress.sorted.rating import make_family
from compress.sorted.space import NestedSpace
from compress.sorted.timing import near_front
from spaces.architecture import Architecture
from spaces.channels.space import ChannelsConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    small_family(folder)
    return folder


@pytest.fixture(scope="module")
def family(run: Path) -> Family:
    return Family.load(run)


def problem_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Networks.open(Family.load(path)).member(0)
    (problem,) = caught.value.problems
    return problem


def test_the_index_tells_of_every_member_what_its_network_costs(family: Family) -> None:
    networks = Networks.open(family)
    assert len(family.members) == 5
    assert sum(each.full for each in family.members) == 1
    assert family.full.macs == max(each.macs for each in family.members)
    for place, each in enumerate(family.members):
        bundle = networks.member(place)
        assert sum(p.numel() for p in bundle.model.parameters()) == each.params == bundle.metrics["params"]
        assert bundle.metrics["macs"] == each.macs
        assert each.latency_ms is None and each.onnx_bytes is None
        assert set(each.metrics) >= {"top1", "loss"}


def test_saved_and_loaded_it_is_the_same(family: Family, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "family", tmp_path / "family")
    times = timed_at(2.5, cpu_p50=None)
    known = tuple(replace(each, onnx_bytes=7, latency_ms=times) for each in family.members)
    changed = replace(family, folder=tmp_path / "family", members=known)
    changed.save()
    assert Family.load(tmp_path) == changed
    assert Family.load(tmp_path / "family") == changed  # by its own folder, too


def test_every_member_has_batch_norm_statistics_of_its_own(family: Family) -> None:
    """Of the same layer at the same width, since what comes before it differs."""
    networks = Networks.open(family)
    stored = load_file(family.folder / NORMS)
    kept = [statistics_of(networks.member(place).model) for place in range(len(family.members))]
    for place, statistics in enumerate(kept):
        assert {f"{place}.{name}" for name in statistics} == {name for name in stored if name.startswith(f"{place}.")}
        assert all(torch.equal(value, stored[f"{place}.{name}"]) for name, value in statistics.items())
    last = [next(reversed([v for n, v in each.items() if n.endswith("running_var")])) for each in kept]
    assert any(a.shape == b.shape and not torch.equal(a, b) for a, b in itertools.combinations(last, 2))


def test_a_members_metrics_are_those_of_its_network_on_the_test_images(family: Family, run: Path) -> None:
    from pydantic import TypeAdapter

    from evaluators.datasets import DataConfig
    from evaluators.tasks.evaluation import evaluate

    bundle = Networks.open(family).member(2)
    config = {"name": "digits", "image_size": 16, "limit_train": 64, "limit_test": 50, "batch_size": 16}
    data = TypeAdapter(DataConfig).validate_python(config).load(bundle.task.config, bundle.preprocessing.to_dict(), 0)
    found = evaluate(bundle.model, data.test, data.task)
    assert found == pytest.approx(dict(family.members[2].metrics), rel=1e-5)


def test_a_member_computes_what_its_part_of_the_shared_weights_does(family: Family) -> None:
    networks = Networks.open(family)
    for place, each in enumerate(family.members):
        bundle = networks.member(place)
        networks.nested.activate(each.arch)
        images = bundle.example_inputs(3)
        with torch.no_grad(), _norms_of_batches(bundle.model), _norms_of_batches(networks.nested):
            difference = (bundle.model(images) - networks.nested(images)).abs().max()
        assert float(difference) <= 1e-6 * 10


@pytest.mark.parametrize(
    "model",
    [
        {"name": "mobilenetv2_035"},
        {"name": "swin_tiny_patch4_window7_224", "kwargs": {"patch_size": 2, "window_size": 4, "embed_dim": 16,
         "depths": [2, 2], "num_heads": [2, 4], "drop_path_rate": 0.0}},
    ],
    ids=["mobilenetv2", "swin"],
)  # fmt: skip
def test_every_member_is_rebuilt_from_its_bundle(model: dict[str, object], tmp_path: Path) -> None:
    """One after the other: what the whole network's layers say of their sizes follows the member that is active."""
    family = small_family(tmp_path, members=4, model=model)
    networks = Networks.open(family)
    for place in (1, 2, 0, 3):
        bundle = networks.member(place)
        bundle.save(tmp_path / f"bundle{place}")
        images = bundle.example_inputs(2)
        with torch.no_grad():
            assert torch.equal(Bundle.load(tmp_path / f"bundle{place}").model(images), bundle.model(images))


class _norms_of_batches:
    """Batch norms go by the batch, so that the statistics, which are a member's own, do not count."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.layers = norm_layers(model)

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.training, layer.momentum = True, 0.0

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.training = False


def test_a_member_that_computes_something_else_is_not_handed_out(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = Networks.open(family)
    extract = NestedNetwork.extract

    def wrong(self: NestedNetwork, arch: Architecture) -> torch.nn.Module:
        module = extract(self, arch)
        next(module.parameters()).data.mul_(1.01)
        return module

    monkeypatch.setattr(NestedNetwork, "extract", wrong)
    with pytest.raises(CompressError, match="member 1 is another network than its part of the whole"):
        networks.member(1)
    assert comparison.TOLERANCE == 1e-6


def test_the_front_and_the_best_are_what_an_enumeration_finds(family: Family) -> None:
    generator = random.Random(1)
    members = []
    for number in range(40):
        times = timed_at(generator.uniform(1, 9)) if generator.random() < 0.6 else None
        size = None if times is None else generator.randrange(100, 900)
        top1 = float(generator.randrange(40, 60))
        members.append(member(generator.randrange(100, 999), top1, latency_ms=times, onnx_bytes=size, full=number == 0))
    many = with_members(family, *members)
    best_of_one = set()
    for key in COSTS:
        known = [(place, each.cost(key)) for place, each in enumerate(members) if each.cost(key) is not None]
        for place, cost in known:
            rivals = [(-members[p].metrics["top1"], c) for p, c in known]  # type: ignore[operator]
            mine = (-members[place].metrics["top1"], cost)  # type: ignore[operator]
            if not any(r[0] <= mine[0] and r[1] <= mine[1] and r != mine for r in rivals):
                best_of_one.add(place)
    assert set(many.front) <= best_of_one
    assert {members[p].metrics["top1"] for p in many.front} == {members[p].metrics["top1"] for p in best_of_one}
    for macs, ms in itertools.product((300, 600, 900), (2, 4, 8)):
        budget = Budget.parse({"macs": str(macs), "latency": f"{ms}ms"})
        fits = [e for e in members if e.macs <= macs and e.latency_ms is not None and e.latency_ms["p50"] <= ms]
        if fits:
            chosen = members[many.best(budget)]
            assert chosen in fits
            assert chosen.metrics["top1"] == max(each.metrics["top1"] for each in fits)  # type: ignore[type-var]
        else:
            with pytest.raises(InputError):
                many.best(budget)


def test_an_error_is_better_the_smaller_it_is(family: Family) -> None:
    main = replace(family.main, name="top1", direction="minimize")
    some = replace(with_members(family, member(10, 4.0, full=True), member(9, 2.0), member(8, 3.0)), main=main)
    assert some.best(Budget.parse({"macs": "10"})) == 1
    assert some.front == (2, 1)


def test_on_a_busy_machine_the_time_of_the_processor_counts() -> None:
    assert member(1, 1.0, latency_ms=timed_at(4.0, cpu_p50=3.0)).cost("latency") == 4.0
    assert member(1, 1.0, latency_ms=timed_at(4.0, cpu_p50=3.0, contended=True)).cost("latency") == 3.0
    assert member(1, 1.0, latency_ms=timed_at(4.0, cpu_p50=7.0, contended=True, threads=2)).cost("latency") == 4.0
    assert member(1, 1.0, latency_ms=timed_at(4.0, cpu_p50=None, contended=True)).cost("latency") == 4.0
    of_a_gpu = timed_at(4.0, cpu_p50=3.0, contended=True, provider="CUDAExecutionProvider")
    assert member(1, 1.0, latency_ms=of_a_gpu).cost("latency") == 4.0
    assert member(1, 1.0, latency_ms=of_a_gpu).shown("latency") == "4.00 ms"
    busy = timed_at(4.0, cpu_p50=3.0, contended=True)
    assert member(1, 1.0, latency_ms=busy).shown("latency") == "3.00 ms of CPU time"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"macs": "50"}, r"--macs  no member is within 50; the smallest of the members takes 200 MACs \(0.200 of the"),
        ({"macs": "0.1"}, r"--macs  no member is within 0.1; .* takes 200 MACs"),
        ({"latency": "1ms"}, r"--latency  no member is within 1ms; the smallest of the 2 members that were measured "
         r"takes 2.00 ms \(0.500"),
        ({"size": "1MB"}, "--size  no member's size was measured; add --measure"),
        ({"size": "0.5"}, "--size  a fraction of the full network's size, which was not measured; got '0.5'"),
        ({"latency": "3ms", "macs": "300"}, "no member is within --latency 3ms --macs 300 together; "
         "the smallest within --latency alone takes 2.00 ms, 500 MACs"),
    ],
)  # fmt: skip
def test_a_budget_that_no_member_satisfies_says_what_the_smallest_takes(
    family: Family, flags: dict[str, str], said: str
) -> None:
    some = with_members(
        family,
        member(1000, 90.0, full=True, latency_ms=timed_at(4.0)),
        member(500, 80.0, latency_ms=timed_at(2.0)),
        member(200, 70.0),
    )
    with pytest.raises(InputError, match=said):
        some.best(Budget.parse(flags))


def test_near_the_front_are_both_ends_the_front_and_the_next_best(family: Family) -> None:
    members = [member(100 * n, 50.0 + n, full=n == 9) for n in range(1, 10)]
    behind = [member(100 * n + 1, 50.0 + n - loss) for n, loss in ((3, 2.0), (4, 0.5), (5, 9.0))]
    some = with_members(family, *members, *behind)
    assert near_front(some, 11) == [*range(9), 9, 10]
    assert near_front(some, 4) == [0, 2, 6, 8]
    assert near_front(some, 2) == [0, 8]
    assert near_front(some, 99) == [*range(12)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 2}, "schema: "),
        ({"members": []}, "members: "),
        ({"front": [99]}, "front: places of members from 0 to 4"),
        ({"weights": "0" * 16}, "the weights are not those"),
        ({"space": {"name": "channels", "options": {"widths": [0.3, 1.0]}}}, "a member does not fit the weights"),
        ({"space": {"name": "darts", "options": {}}}, "members of space 'darts'; allowed: channels"),
        ({"space": {"name": "channels", "options": {"wide": 1}}}, "cannot be opened: wide: unknown key"),
        ({"space": {"name": "channels", "options": {"include": ["no*"]}}}, "cannot be opened: sort.include"),
        ({"extra": 1}, "extra: unknown"),
    ],
)
def test_a_damaged_or_foreign_index_is_one_sentence(run: Path, tmp_path: Path, changes: object, said: str) -> None:
    shutil.copytree(run / "family", tmp_path / "family")
    edited(tmp_path, **changes)  # type: ignore[arg-type]
    problem = problem_of(tmp_path)
    assert said in problem and str(tmp_path / "family") in problem


def test_damaged_files_are_one_sentence(run: Path, tmp_path: Path) -> None:
    assert "holds no family/family.json" in problem_of(tmp_path)
    assert "is not a directory" in problem_of(tmp_path / "nowhere")
    shutil.copytree(run / "family", tmp_path / "family")
    file = tmp_path / "family" / INDEX
    text = file.read_text()
    for damaged in (text[:100], "[]", "", '{"schema": 1}', text.replace('"full": true', '"full": false')):
        file.write_text(damaged)
        assert str(file) in problem_of(tmp_path)
    file.write_text(text)
    (tmp_path / "family" / NORMS).unlink()
    assert NORMS in problem_of(tmp_path)


def test_statistics_of_another_network_are_refused(run: Path, tmp_path: Path) -> None:
    from compress.sorted.family import digest

    shutil.copytree(run / "family", tmp_path / "family")
    file = tmp_path / "family" / NORMS
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if not name.startswith("0.bn1")}, file)
    edited(tmp_path, weights=digest(tmp_path / "family"))
    assert "statistics of member 0 do not fit" in problem_of(tmp_path)


def test_a_family_without_its_full_network_is_refused(run: Path) -> None:
    bundle = Bundle.load(run / "family" / WEIGHTS)
    narrow = NestedNetwork(NestedSpace(bundle, ChannelsConfig(widths=[0.25, 0.5])))
    with pytest.raises(InputError, match="members: the full network is not among them"):
        make_family(run / "other", narrow, bundle, list(itertools.islice(narrow.space, 2)), None)  # type: ignore[arg-type]
    assert not (run / "other").exists()
