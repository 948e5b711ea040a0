from __future__ import annotations

import math

import pytest

from compress.core.yaml_lines import parse, parse_scalar, written


def test_numbers_with_exponent_and_yaml_1_1_words_read_as_people_expect() -> None:
    values = parse("lr: 1e-3\nanswer: no\ntime: 1:30\nhigh: .inf\nempty:\nflag: true\nwidth: 007\n").values
    assert values == {
        "lr": 0.001, "answer": "no", "time": "1:30", "high": math.inf, "empty": None, "flag": True, "width": 7,
    }  # fmt: skip


def test_every_key_knows_its_line() -> None:
    document = parse("# comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n")
    assert document.lines[("a", "b")] == 3
    assert document.lines[("a", "c", 1, "d")] == 6
    assert document.line(("a", "b", "deeper")) == 3


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "twice"),
        ("a:\n\tb: 1\n", 2, "a tab in the indentation"),
        ("a: 1\t# one\n", 1, "a tab between a value and what follows"),
        ("a: {b: (3, 3)}\n", 1, "'3)' is no key with a value"),
        ("a: {b=1}\n", 1, "'b=1' is no key with a value"),
        ("a: 1e999\n", 1, "got float '1e999'"),
        ("a:\n  <<: 1\n", 2, "<<: merges sections"),
        ("a: [1, 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, ""),
        ("a: !!python/name:os.system\n", 1, "do not take"),
        ("a: &x\n  b: *x\n", 1, "contains itself"),
        ("? [1]\n: 2\n", 1, "not text"),
        ("a: \x01\n", 1, "not YAML"),
    ],
)
def test_problems_of_the_text_are_found_with_their_line(text: str, line: int, words: str) -> None:
    document = parse(text)
    if not words:  # a tagged list is plain data: nothing is constructed from the tag
        assert document.values == {"a": ["ls"]}
        return
    assert [problem.line for problem in document.problems] == [line]
    assert words in document.problems[0].text


def test_all_duplicates_are_reported_at_once() -> None:
    assert len(parse("a: 1\na: 2\nb: 1\nb: 2\n").problems) == 2


def test_aliases_cannot_unfold_without_end() -> None:
    layers = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
    layers += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "more than" in parse("\n".join(layers)).problems[0].text


def test_values_of_set_are_yaml() -> None:
    assert parse_scalar("[1e-3, a, {b: null}]") == [0.001, "a", {"b": None}]
    with pytest.raises(ValueError, match="begins a comment"):
        parse_scalar("a #b")
    with pytest.raises(ValueError, match=r"a: the key stands twice"):
        parse_scalar("{a: 1, a: 2}")


def test_merge_keys_bring_in_what_is_not_said() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], z: 5}\nd:\n  x: 0\n  <<: *a\n"
    values = parse(text).values
    assert values["c"] == {"x": 1, "y": 2, "z": 5} and values["d"] == {"x": 0, "y": 2}


def test_numbers_remember_how_they_were_written() -> None:
    values = parse("a: 007\nb: 1.10\nc: 1e3\nd: word\n").values
    assert [written(each) for each in values.values()] == ["007", "1.10", "1e3", "word"]
