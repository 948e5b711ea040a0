from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, create_model

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import validated
from compress.core.registry import Registry
from compress.core.sections import NameOf, OneOf


class Base(Config):
    name: str


class Near(Base):
    name: Literal["near"] = "near"
    steps: int = Field(1, ge=1)


class Far(Base):
    name: Literal["far", "farther"]
    metres: float = Field(10.0, gt=0)


def walks() -> Registry[Any]:
    registry: Registry[Any] = Registry("walk")
    registry.register("near")(Near)
    registry.register("far", "farther")(Far)
    return registry


def recipe(registry: Registry[Any], default: str | None = None) -> type[Any]:
    return create_model(
        "Recipe",
        __base__=Config,
        walk=(Annotated[Base, OneOf(registry, "name", default)], ...),
        leader=(Annotated[str, NameOf(registry)], "near"),
    )


def refused(values: Any, default: str | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        validated(recipe(walks(), default), values)
    return caught.value.problems


def test_sections_are_told_apart_by_their_key_and_written_in_full() -> None:
    kind = recipe(walks())
    assert validated(kind, {"walk": {"name": "near", "steps": 3}}).walk == Near(steps=3)
    far = validated(kind, {"walk": {"name": "farther"}})
    assert far.walk == Far(name="farther")
    assert far.model_dump() == {"walk": {"name": "farther", "metres": 10.0}, "leader": "near"}
    assert validated(kind, {"walk": Near(steps=2)}).walk == Near(steps=2)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "nera"}, "walk.name: unknown value; got \"nera\"; allowed far, farther, near; did you mean 'near'?"),
        ({}, "walk.name: required, but missing; allowed far, farther, near"),
        ({"name": "near", "stesp": 1}, "walk.stesp: unknown key; allowed name, steps; did you mean 'steps'?"),
        ({"name": "near", "steps": 0}, "walk.steps: out of range; got 0; allowed at least 1"),
        (3, "walk: wrong type; got 3; allowed a section of keys"),
    ],
)
def test_a_wrong_section_is_one_sentence(section: Any, says: str) -> None:
    assert refused({"walk": section}) == [says]


def test_a_section_without_the_key_is_the_default() -> None:
    assert validated(recipe(walks(), "near"), {"walk": {"steps": 5}}).walk == Near(steps=5)
    assert refused({"walk": {"stesp": 5}}, "near") == [
        "walk.stesp: unknown key; allowed name, steps; did you mean 'steps'?"
    ]


def test_a_name_is_one_of_those_registered() -> None:
    assert refused({"walk": {"name": "near"}, "leader": "fra"}) == [
        "leader: unknown value; got \"fra\"; allowed far, farther, near; did you mean 'far'?"
    ]


def test_what_registers_before_the_first_section_is_validated_is_legal() -> None:
    class Late(Base):
        name: Literal["late"] = "late"

    registry = walks()
    kind = recipe(registry)
    registry.register("late")(Late)
    assert validated(kind, {"walk": {"name": "late"}, "leader": "late"}).walk == Late()
    tags = kind.model_json_schema()["properties"]["walk"]["discriminator"]["mapping"]
    assert set(tags) == {"near", "far", "farther", "late"}


def test_a_config_without_its_own_name_is_named_with_its_module() -> None:
    class Nameless(Base):
        steps: int = 1

    registry = walks()
    registry.register("nameless")(Nameless)
    with pytest.raises(InputError, match=r"the walk 'nameless' \(.*test_sections\) needs the field `name: Literal"):
        validated(recipe(registry), {"walk": {"name": "near"}})
