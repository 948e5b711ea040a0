from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from compress.core.config import Config
from compress.core.problems import understood
from compress.core.yaml_lines import parse_scalar


class Cosine(Config):
    loss: Literal["cosine"]


class Kd(Config):
    loss: Literal["kd"]
    weight: float = 1.0


class Settings(Config):
    distill: Annotated[Cosine | Kd, Field(discriminator="loss")] | None = None
    deeper: Kd | None = None
    count: int = 1
    rate: float = 1.0
    share: float | None = Field(None, gt=0, lt=1)
    latency_ms: float = 1.0
    minutes: float | None = None
    flag: bool = False
    name: str = ""
    align: Literal["auto"] | int = "auto"
    kind: Literal["low_rank", "merge"] = "merge"
    bits: Literal["32", "16"] = "32"
    names: list[str] = Field([])
    epochs: list[int] = Field([])
    size: tuple[int, ...] = ()
    mean: tuple[float, ...] | None = None


def read(key: str, text: str) -> tuple[Any, list[str]]:
    def strictly(values: Any) -> Settings:
        return Settings.model_validate_json(json.dumps(values), strict=True)

    found, _, problems = understood(strictly, Settings, {key: parse_scalar(text)})
    return getattr(found, key, None), [sentence for _, sentence in problems]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "'30'", 30),
        ("count", "1_000", 1000),
        ("count", "0x10", 16),
        ("count", "1e3", 1000),
        ("count", "30.0", 30),
        ("rate", "'1e-3'", 0.001),
        ("rate", "1/8", 0.125),
        ("share", "50%", 0.5),
        ("share", "0.5 %", 0.005),
        ("latency_ms", "4 ms", 4.0),
        ("latency_ms", "0.004s", 4.0),
        ("latency_ms", "400us", 0.4),
        ("minutes", "2h", 120.0),
        ("minutes", "30 s", 0.5),
        ("flag", "yes", True),
        ("flag", "Off", False),
        ("name", "007", "007"),
        ("name", "1.10", "1.10"),
        ("align", "'8'", 8),
        ("align", "AUTO", "auto"),
        ("kind", "Low-Rank", "low_rank"),
        ("bits", "16", "16"),
        ("names", "layer1.*", ["layer1.*"]),
        ("epochs", "3", [3]),
        ("epochs", "1, 2", [1, 2]),
        ("size", "3x16x16", (3, 16, 16)),
        ("size", "(3, 16)", (3, 16)),
        ("mean", "0.5, 0.25", (0.5, 0.25)),
        ("distill", "KD", Kd(loss="kd")),
    ],
)
def test_a_form_whose_meaning_is_beyond_doubt_is_taken(key: str, text: str, value: Any) -> None:
    found, problems = read(key, text)
    assert (found, problems) == (value, []) and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("count", "1.5"),
        ("count", "1e30"),
        ("count", "true"),
        ("rate", "0,5"),
        ("rate", "5%"),  # of what?
        ("rate", "4ms"),
        ("share", "2x"),
        ("share", "1/0"),
        ("share", "150%"),
        ("latency_ms", "4 GB"),
        ("flag", "1"),
        ("flag", "y"),
        ("name", "true"),
        ("align", "none"),
        ("kind", "lowrank"),
        ("names", "a, b"),  # one name or two?
        ("size", "224"),  # height and width, or all of it?
        ("size", "3 16 16"),
        ("distill", "mse"),
        ("deeper", "kd"),  # another field may be meant
    ],
)
def test_what_is_in_doubt_is_refused(key: str, text: str) -> None:
    found, problems = read(key, text)
    assert found is None and len(problems) == 1, found


def test_the_rest_of_what_is_wrong_is_told_of_the_value_that_was_meant() -> None:
    assert read("share", "150%")[1] == ["out of range; got 1.5; allowed above 0 and below 1"]
