"""Values that several processes keep in one file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from compress.core.errors import InputError, NotWritten
from evaluators.candidates.cache import JsonCache, locked


def put_all(path: Path, names: list[str]) -> None:
    cache = JsonCache(path)
    for name in names:
        cache.put(name, {"value": name})


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    lists = [[f"{worker}-{number}" for number in range(25)] for worker in range(3)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=put_all, args=(path, names)) for names in lists]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    cache = JsonCache(path)
    assert all(cache.get(name) == {"value": name} for names in lists for name in names)
    assert len(path.read_text().splitlines()) == 75


def test_a_value_is_written_and_read_once_however_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    mine, other = JsonCache(path), JsonCache(path)
    mine.put("0", 0)
    first = path.stat()
    for number in range(300):
        before = path.stat().st_size
        assert other.get(f"{number}") == number and mine.get(f"{number + 1}") is None
        mine.put(f"{number + 1}", number + 1)
        assert path.stat().st_size - before == len(f'{{"{number + 1}": {number + 1}}}\n')
    assert path.stat().st_ino == first.st_ino  # never written anew
    mine.put("7", [None])
    assert other.get("7") == JsonCache(path).get("7") == [None]


def test_a_line_that_a_kill_cut_short_counts_as_absent_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    put_all(path, ["a", "b"])
    whole = path.read_bytes()
    reader = JsonCache(path)
    for length in range(1, len(whole) // 2):
        path.write_bytes(whole[:-length])
        assert reader.get("b") is None and reader.get("a") == {"value": "a"}
        JsonCache(path).put("c", 3)
        assert reader.get("c") == 3 and JsonCache(path).get("a") == {"value": "a"}
        assert path.read_text().splitlines() == ['{"a": {"value": "a"}}', '{"c": 3}']
        reader = JsonCache(path)


def test_values_of_an_older_version_are_found_until_there_are_newer_ones(tmp_path: Path) -> None:
    (tmp_path / "values.json").write_text(json.dumps({"a": 1, "b": 2}, indent=2))
    cache = JsonCache(tmp_path / "values.jsonl")
    assert cache.get("a") == 1
    cache.put("a", 3)
    assert [JsonCache(cache.path).get(name) for name in "abc"] == [3, 2, None]
    (tmp_path / "values.json").write_text("{")
    with pytest.raises(InputError, match=r"values\.json: cannot be read as JSON .*; delete it to measure anew"):
        JsonCache(cache.path).get("b")


@pytest.mark.parametrize("line", ["{", "[1]", "\0\0"])
def test_a_damaged_line_names_the_file(line: str, tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
    with pytest.raises(InputError, match=r"values\.jsonl: cannot be read as JSON .*; delete it to measure anew"):
        JsonCache(path).get("a")
    path.unlink()
    assert JsonCache(path).get("a") is None


def test_a_value_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "values.jsonl").mkdir()
    with pytest.raises(NotWritten, match=r"cannot write .*values\.jsonl"):
        JsonCache(tmp_path / "values.jsonl").put("a", 1)


def test_a_lock_that_is_held_is_not_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as mine, locked(tmp_path / "lock", wait=False) as other:
        assert mine and not other
    with locked(tmp_path / "lock", wait=False) as free:
        assert free
