"""Messages name the flag that a value was given by, and none where the value stands in the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli import app

SUPERNET = "spos_mobilenetv3_digits.yaml"


def told(*words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--quiet"])
    assert result.exit_code == 2, result.output
    return str(result.stderr)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rank", SUPERNET, "--truth", "nosuch.csv"], "--truth  rank.truth: nosuch.csv"),
        (["rank", SUPERNET, "--against", "9", "--architectures", "3"], "--against  rank: against trains 9"),
        (["rank", SUPERNET, "--architectures", "0"], "--architectures  rank.architectures: out of range"),
        (["rank", SUPERNET, "--set", "rank.architectures=0"], "--set  rank.architectures: out of range"),
        (["plan", "resnet_digits.yaml", "--seed", "99999999999"], "--seed  seed: out of range"),
        (["run", "resnet_digits.yaml", "--set", "seed=-1"], "--set  seed: out of range"),
        (["run", "search_ray.yaml", "--ray-address", "ray://head:10001"], "--ray-address  search.executor.address: "),
        (
            ["run", "resnet_digits.yaml", "--ray-address", "auto"],
            "--ray-address  search: the recipe searches nothing; ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_flag_of_a_value_is_named(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(*words).startswith(says)
    assert not list(tmp_path.iterdir())


def test_what_no_flag_said_is_told_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("version: 1\nname: mine\nmodel: resnet18\ndata: digits\n")
    for more in ([], ["--architectures", "3"], ["--seed", "1"]):
        assert told("rank", str(path), *more).startswith(f"{path}:1  rank.weights: missing")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["run", "resnet_digits.yaml", "--seed", "abc"],
            "--seed  wrong value; got 'abc'; allowed whole numbers from 0",
        ),
        (["plan", "resnet_digits.yaml", "--seed=-3"], "--seed  wrong value; got '-3'; allowed whole numbers from 0"),
        (["rank", SUPERNET, "--against", "1.5"], "--against  wrong value; got '1.5'; allowed whole numbers"),
        (
            ["latency-table", "--space", "x", "-o", "t.json", "--seconds", "11"],
            "--seconds  wrong value; got '11'; allowed numbers from 0 to 10",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_that_takes_a_number_says_which(words: list[str], says: str) -> None:
    assert told(*words) == f"{says}\n"
