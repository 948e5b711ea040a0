from __future__ import annotations

import math

import pytest

from compress.core.yaml_lines import parse, parse_scalar


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
        ("a:\n\tb: 1\n", 2, "tab"),
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
