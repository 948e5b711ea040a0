"""Loops that take long tell how far they are, on a terminal and in the log of a batch job."""

from __future__ import annotations

import itertools

import pytest

from compress.core import progress
from compress.core.progress import hushed, say, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is twenty seconds after the one before."""
    seconds = itertools.count(1000.0, 20.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(progress, "_spoke", 1000.0)


def test_without_a_terminal_a_line_comes_after_each_minute_of_silence(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    say("[1/2] train")  # at 1000 s; the loop begins at 1020 s, and its items end at 1040, 1060, 1080, ... s
    assert list(track(range(8), "train 2/3", total=20, done=10)) == list(range(8))
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] train",
        "train 2/3: 12 of 20, about 2 min 40 s left",  # 8 items of 20 s
        "train 2/3: 15 of 20, about 2 min 00 s left",  # 5 items of 24 s: writing looks at the clock as well
        "train 2/3: 18 of 20, about 50.0 s left",
    ]


def test_what_has_no_length_tells_how_many_were_done(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(1 for _ in track((None for _ in range(4)), "searching")) == 4
    assert capsys.readouterr().err.splitlines() == ["searching: 3"]


def test_nothing_is_told_when_asked_to_be_quiet(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with hushed():
        assert list(track([1, 2, 3, 4, 5, 6], "train")) == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err == ""


def test_quick_loops_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    say("[1/2] train")
    assert list(track(range(100), "train")) == list(range(100))
    assert capsys.readouterr().err == "[1/2] train\n"


def test_a_loop_tells_how_far_it_is_also_where_what_it_does_is_told_more_often(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(2), "searching"):
        for _ in track(range(4), "candidate"):
            pass
    said = [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert "searching: 1 of 2" in said and "candidate: 2 of 4" in said
