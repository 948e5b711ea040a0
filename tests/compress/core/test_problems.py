from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from compress.core.config import Config
from compress.core.errors import InputError, did_you_mean
from compress.core.problems import under, validated


class Command(Config):
    command: str = Field(min_length=1, description="what is run")
    timeout: float = Field(30.0, gt=0)


class Label(Config):
    label: str


class Settings(Config):
    target: Literal["local"] | Command | Label = "local"
    align: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    names: list[str] = Field(default_factory=lambda: ["a"], min_length=1)
    layers: dict[str, str] = Field({"a": "b"}, min_length=1)
    commands: dict[str, Command] = Field({})
    limits: dict[int, Annotated[int, Field(ge=1)]] = Field({})
    pair: tuple[Annotated[int, Field(ge=1)], Command] | None = None


def problems(values: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        validated(Settings, values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"target": {"command": ""}}, ['target.command: out of range; got ""; allowed not empty']),
        ({"target": {"command": "ssh", "timeout": 0}}, ["target.timeout: out of range; got 0; allowed above 0"]),
        ({"target": {"label": True}}, ["target.label: wrong type; got true; allowed text"]),
        ({"target": "remote"}, ['target: unknown value; got "remote"; allowed local or a section of keys']),
        ({"align": "x"}, ['align: unknown value; got "x"; allowed auto or a whole number']),
        ({"names": []}, ["names: out of range; got []; allowed not empty"]),
        ({"layers": {}}, ["layers: out of range; got {}; allowed not empty"]),
        (
            {"commands": {"t": {"command": "ls", "timeuot": 1}}},
            ["commands.t.timeuot: unknown key; allowed command, timeout; did you mean 'timeout'?"],
        ),
        ({"commands": {"t": {}}}, ["commands.t.command: required, but missing: what is run"]),
        ({"limits": {3: 0}}, ["limits.3: out of range; got 0; allowed at least 1"]),
        ({"pair": [0, {"command": "ls"}]}, ["pair.0: out of range; got 0; allowed at least 1"]),
        (
            {"pair": [1, {"comand": "ls"}]},
            ["pair.1.comand: unknown key; allowed command, timeout; did you mean 'command'?"],
        ),
        ({"naems": [], "align": 0}, 2),
        (3, ["wrong type; got 3; allowed a section of keys"]),
    ],
)
def test_only_what_is_wrong_for_the_kind_of_section_that_was_meant_is_told(values: Any, says: list[str] | int) -> None:
    found = problems(values)
    assert len(found) == says if isinstance(says, int) else found == says


def test_callers_say_where_a_key_lies() -> None:
    with pytest.raises(InputError, match=r"^table\.json: align: .* got 0; allowed auto or greater than or equal to 1$"):
        validated(Settings, {"align": 0}, under("table.json: "))
    assert validated(Settings, {"align": 2}).align == 2


def test_keys_are_known_by_the_names_that_they_have_elsewhere() -> None:
    assert did_you_mean("learning_rate", ["decay_rate", "lr"]) == "; did you mean 'lr'?"
    assert did_you_mean("learning_rate", ["decay_rate"]) == "; did you mean 'decay_rate'?"
