"""How long members of a family take with ONNX Runtime: those near the front, timed in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from compress.core.progress import say, track
from compress.export.quick import export_quickly
from compress.picking.budget import Budget
from compress.picking.members import Member
from compress.sorted.family import Family
from compress.sorted.networks import Networks
from evaluators.latency.measure import LatencyConfig, interleave, record


def timed(family: Family, config: LatencyConfig, most: int) -> Family:
    """Write the members near the front as ONNX, time them in turns, and return the family with what is known then.

    Args:
        family: of which it is.
        config: as a final result is timed; each member is for a shorter while.
        most: so many members at most.

    Raises:
        InputError: the target or its settings do not suit the members.
        CompressError: a member could not be exported, or the target failed.
    """
    places = near_front(family, most)
    brief = briefly(config)
    say(f"timing {len(places)} of {len(family.members)} members")
    with _files(Networks.open(family), places) as files:
        records = interleave(files, brief).records if len(files) > 1 else [record(files[0], brief)]
        sizes = [file.stat().st_size for file in files]
    found = {
        place: replace(family.members[place], onnx_bytes=size, latency_ms=each.latency_ms)
        for place, size, each in zip(places, sizes, records, strict=True)
    }
    return _with(family, found)


def briefly(config: LatencyConfig) -> LatencyConfig:
    """Return how each of many members is timed: shorter than a final result."""
    return config.at_most(runs=30, seconds=0.5, max_seconds=1.5)


def near_front(family: Family, most: int) -> list[int]:
    """Return the places of up to `most` members: the full network, the smallest, the front, and who is next to it.

    Where the front alone has more, those of it that are evenly spaced.
    """
    members = family.members
    least = min(range(len(members)), key=lambda place: members[place].macs)
    ends = list(dict.fromkeys([members.index(family.full), least]))
    front = [place for place in family.front if place not in ends]
    room = max(0, most - len(ends))
    if len(front) > room:
        front = [front[(2 * number + 1) * len(front) // (2 * room)] for number in range(room)]
    others = sorted(set(range(len(members))) - {*ends, *front}, key=lambda place: _behind(family, place))
    return sorted([*ends, *front, *others[: room - len(front)]])


def _behind(family: Family, place: int) -> float:
    """Return by how much the best member of as many MACs or fewer is better."""
    member, score = family.members[place], family.main.score
    return max(score(other) for other in family.members if other.macs <= member.macs) - score(member)


def measure_for(family: Family, budget: Budget, config: LatencyConfig) -> Family:
    """Measure what has to be known so that no member without figures can be better than the best within the budget.

    From the best member on, those whose size or latency the budget asks for and nobody knows, up to the first one
    within it. What was measured is written to the family, one by one. Raises as `timed` does.
    """
    if not {"latency", "size"} & set(budget.limits):
        return family
    networks = Networks.open(family)
    if any(limit.fraction for limit in budget.limits.values()):
        family = _measured(family, networks, family.members.index(family.full), config)
    known = Budget({key: limit for key, limit in budget.limits.items() if key in ("macs", "params")})
    for place in family.within(known):
        family = _measured(family, networks, place, config)
        if place in family.within(budget):
            break
    return family


def _measured(family: Family, networks: Networks, place: int, config: LatencyConfig) -> Family:
    member = family.members[place]
    if member.latency_ms is not None:
        return family
    with _files(networks, [place]) as (file,):
        found = replace(member, onnx_bytes=file.stat().st_size, latency_ms=record(file, config).latency_ms)
    family = _with(family, {place: found})
    family.save()
    return family


def _with(family: Family, found: Mapping[int, Member]) -> Family:
    members = tuple(found.get(place, member) for place, member in enumerate(family.members))
    return replace(family, members=members)


@contextmanager
def _files(networks: Networks, places: Sequence[int]) -> Iterator[list[Path]]:
    """Yield the members as ONNX files, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for place in track(places, "writing members"):
            bundle = networks.member(place)
            files.append(Path(folder) / f"member{place}.onnx")
            export_quickly(bundle.model, bundle.example_inputs(2), files[-1], bundle.task, bundle.inputs)
        yield files
