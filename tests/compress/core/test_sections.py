from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field, ValidationError, create_model

from compress.core.config import Config
from compress.core.errors import InputError
from compress.core.problems import validated
from compress.core.registry import Registry
from compress.core.sections import NameOf, OneOf, OneOfShort, OptionsOf, ReadAnew


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


class Here(Config):
    kind: Literal["here"] = "here"


class Wire(Config):
    kind: Literal["wire"] = "wire"
    wire: str = Field(min_length=1)
    retries: int = Field(3, ge=0)


class Post(Config):
    kind: Literal["post"] = "post"
    address: str
    wire: str | None = None


def way() -> type[Any]:
    registry: Registry[Any] = Registry("way", base=Config)
    for name, config in (("here", Here), ("wire", Wire), ("post", Post)):
        registry.register(name)(config)
    return create_model("Recipe", __base__=Config, way=(Annotated[Config, OneOfShort(registry, "kind")], Here()))


@pytest.mark.parametrize(
    ("written", "means", "again"),
    [
        ("here", Here(), "here"),
        ({"kind": "here"}, Here(), "here"),
        ({"wire": "red"}, Wire(wire="red"), {"wire": "red", "retries": 3}),
        ({"kind": "wire", "wire": "red"}, Wire(wire="red"), {"wire": "red", "retries": 3}),
        ({"kind": "post", "address": "x"}, Post(address="x"), {"kind": "post", "address": "x", "wire": None}),
        (Wire(wire="red"), Wire(wire="red"), {"wire": "red", "retries": 3}),
    ],
)
def test_a_section_may_be_written_short_and_is_written_so_again(written: Any, means: Config, again: Any) -> None:
    found = validated(way(), {"way": written})
    assert found.way == means
    for mode in ("json", "python"):
        assert found.model_dump(mode=mode) == {"way": again}
    assert validated(way(), {"way": again}).way == means


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("heer", "way: unknown value; got \"heer\"; allowed here or a section of keys; did you mean 'here'?"),
        ("wire", 'way: unknown value; got "wire"; allowed here or a section of keys'),
        (None, "way: unknown value; got null; allowed here or a section of keys"),
        ({}, "way.kind: required, but missing; allowed here, post, wire"),
        ({"retries": 3}, "way.kind: required, but missing; allowed here, post, wire"),
        ({3: 4}, "way.kind: required, but missing; allowed here, post, wire"),
        ({"kind": "wier"}, "way.kind: unknown value; got \"wier\"; allowed here, post, wire; did you mean 'wire'?"),
        ({"kind": [1]}, "way.kind: unknown value; got [1]; allowed here, post, wire"),
        ({"wrie": "red"}, "way.wrie: unknown key; allowed kind, retries, wire; did you mean 'wire'?"),
        ({"wire": ""}, 'way.wire: out of range; got ""; allowed not empty'),
        ({"wire": "red", "retries": -1}, "way.retries: out of range; got -1; allowed at least 0"),
        ({"wire": "red", "address": "x"}, "way.address: unknown key; allowed kind, retries, wire"),
        ({"here": None}, "way.here: unknown key; allowed kind"),
        ({"kind": "post"}, "way.address: required, but missing"),
    ],
)
def test_what_is_wrong_in_a_short_section_is_one_sentence(written: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(way(), {"way": written})
    assert caught.value.problems == [says]


class Rule(Config):
    """Something with options."""


class Plain(Rule):
    """Leaves nothing open."""


class Norm(Rule):
    norm: int = Field(2, ge=1)
    share: float = 0.5


def ruled() -> type[Any]:
    registry: Registry[Any] = Registry("rule", base=Rule)
    registry.register("plain")(Plain)
    registry.register("norm")(Norm)
    return create_model(
        "Recipe",
        __base__=Config,
        rule=(Annotated[str, NameOf(registry)], "plain"),
        options=(Annotated[Rule, OptionsOf(registry, "rule")], Plain()),
    )


@pytest.mark.parametrize(
    ("written", "means", "again"),
    [
        ({}, Plain(), {}),
        ({"options": {}}, Plain(), {}),
        ({"rule": "norm"}, Norm(), {"norm": 2, "share": 0.5}),
        ({"rule": "norm", "options": {"norm": 1}}, Norm(norm=1), {"norm": 1, "share": 0.5}),
        ({"rule": "norm", "options": Norm(share=0.25)}, Norm(share=0.25), {"norm": 2, "share": 0.25}),
    ],
)
def test_options_are_of_what_another_key_names(written: Any, means: Config, again: Any) -> None:
    kind = ruled()
    found = validated(kind, written)
    assert type(found.options) is type(means) and found.options == means
    assert found.model_dump(mode="json")["options"] == again
    assert kind.model_validate_json(found.model_dump_json(), strict=True) == found


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"options": {"norm": 2}}, "options.norm: unknown key; allowed none"),
        (
            {"rule": "norm", "options": {"nrom": 1}},
            "options.nrom: unknown key; allowed norm, share; did you mean 'norm'?",
        ),
        ({"rule": "norm", "options": {"norm": 0}}, "options.norm: out of range; got 0; allowed at least 1"),
        ({"rule": "norm", "options": 3}, "options: wrong type; got 3; allowed a section of keys"),
        (
            {"rule": "nomr", "options": {"x": 0}},
            "rule: unknown value; got \"nomr\"; allowed norm, plain; did you mean 'norm'?",
        ),
    ],
)
def test_an_option_of_something_else_is_refused_by_name(written: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(ruled(), written)
    assert caught.value.problems == [says]


class Trip(Config):
    kind: Literal["trip"] = "trip"
    stops: tuple[int, ...] = ()
    shown: frozenset[str] = frozenset()
    start: date | None = None


def by_number(section: Any) -> Any:
    return {"stops": [section]} if isinstance(section, int) else section


def trips() -> type[Any]:
    """A recipe with a section of every sort."""
    registry: Registry[Any] = Registry("trip", base=Config)
    registry.register("trip")(Trip)
    return create_model(
        "Recipe",
        __base__=Config,
        plain=(Annotated[Config, OneOf(registry, "kind")], Trip()),
        default=(Annotated[Config, OneOf(registry, "kind", "trip")], Trip()),
        short=(Annotated[Config, OneOfShort(registry, "kind")], Trip()),
        name=(Annotated[str, NameOf(registry)], "trip"),
        options=(Annotated[Config, OptionsOf(registry, "name")], Trip()),
        number=(Annotated[Trip, ReadAnew(), BeforeValidator(by_number)], Trip()),
        numbers=(list[Annotated[Trip, ReadAnew(), BeforeValidator(by_number)]], []),
    )


@pytest.mark.parametrize("key", ["plain", "default", "short", "options", "number"])
def test_lists_and_texts_of_a_recipe_are_tuples_sets_and_dates_in_every_sort_of_section(key: str) -> None:
    kind = trips()
    written = {"kind": "trip", "stops": [1, 2], "shown": ["x"], "start": "2025-01-31"}
    found = kind.model_validate_json(json.dumps({key: written}), strict=True)
    assert getattr(found, key) == Trip(stops=(1, 2), shown=frozenset("x"), start=date(2025, 1, 31))
    assert found.model_dump(mode="json")[key] == written
    assert kind.model_validate_json(found.model_dump_json(), strict=True) == found == validated(kind, found)
    for wrong in ([1, "2"], [1.5], 3):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate_json(json.dumps({key: {"kind": "trip", "stops": wrong}}), strict=True)
        assert [detail["loc"][0] for detail in caught.value.errors()] == [key]
    with pytest.raises(InputError, match=rf"^{key}.stops.1: wrong type; got \"x\"; allowed a whole number$"):
        validated(kind, {key: {"kind": "trip", "stops": [1, "x"]}})


def test_a_section_that_a_validator_writes_in_full_is_read_as_if_it_had_been_written_so() -> None:
    found = trips().model_validate_json('{"number": 3, "numbers": [4, {"stops": [5, 6]}]}', strict=True)
    assert found.number == Trip(stops=(3,)) and found.numbers == [Trip(stops=(4,)), Trip(stops=(5, 6))]
    assert set(trips().model_json_schema()["$defs"]["Trip"]["properties"]) == {"kind", "stops", "shown", "start"}
