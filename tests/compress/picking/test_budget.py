from __future__ import annotations

import pytest

from compress.core.errors import InputError
from compress.picking.budget import Budget, Limit


@pytest.mark.parametrize(
    ("key", "text", "value", "fraction"),
    [
        ("latency", "3.5ms", 3.5, False),
        ("latency", "50 %", 0.5, True),
        ("latency", "0.002 s", 2.0, False),
        ("latency", "800us", 0.8, False),
        ("latency", "0.5", 0.5, True),
        ("macs", "0.4", 0.4, True),
        ("macs", "1", 1.0, True),
        ("macs", "20M", 2e7, False),
        ("macs", "1.5g", 1.5e9, False),
        ("macs", "200000", 2e5, False),
        ("params", "2M", 2e6, False),
        ("size", "5MB", 5e6, False),
        ("size", "640kb", 6.4e5, False),
    ],
)
def test_a_limit_has_a_unit_or_is_a_fraction(key: str, text: str, value: float, fraction: bool) -> None:
    assert Budget.parse({key: text, "params" if key != "params" else "macs": None}) == Budget(
        {key: Limit(pytest.approx(value), fraction, text)}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("latency", "3.5", "without a unit"),
        ("latency", "3.5MB", "not in a unit of latency"),
        ("latency", "ms", "not a limit"),
        ("latency", "-1ms", "not a limit"),
        ("macs", "20MB", "not in a unit of MACs"),
        ("macs", "150%", "more than the full network"),
        ("macs", "0", "must be a finite number above 0"),
        ("params", "nan", "not a limit"),
        ("params", "1e999M", "must be a finite number above 0"),
        ("size", "5M", "not in a unit of size"),
        ("size", "5", "without a unit"),
    ],
)
def test_what_is_no_limit_is_one_sentence(key: str, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse({key: text})
    (problem,) = caught.value.problems
    assert problem.startswith(f"--{key}  {said}")
    assert repr(text) in problem and "allowed a number with" in problem


def test_every_wrong_limit_is_told() -> None:
    with pytest.raises(InputError) as caught:
        Budget.parse({"latency": "fast", "macs": "few", "params": "2M", "size": None})
    assert len(caught.value.problems) == 2
