"""Sections and keys of a recipe whose alternatives are what a registry holds, so that plug-ins are legal values.

The alternatives are looked up when a section is first validated, not while modules are being imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from compress.core.errors import InputError, did_you_mean, reason_of
from compress.core.problems import named_by
from compress.core.registry import Registry, module_of


@dataclass(frozen=True)
class ReadAnew:
    """Annotates a config: what came as JSON is read as JSON, though a validator has made Python values of it before.

    A validator in Python (for a name alone, a default, a discriminator of ours) hands on Python values. Validated
    strictly, as recipes are, their lists are no tuples or sets and their texts no dates, while those of JSON are.
    """

    def __get_pydantic_core_schema__(self, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(section: Any, inner: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
            if info.mode == "python":
                return inner(section)
            return section if isinstance(section, source) else inner(json.dumps(section))

        schema = handler(source)
        either = core_schema.json_or_python_schema(core_schema.json_schema(schema), schema)
        plain = core_schema.wrap_serializer_function_ser_schema(lambda section, write: write(section), schema=schema)
        return core_schema.with_info_wrap_validator_function(read, either, serialization=plain)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        inner: Any = schema
        while "python_schema" not in inner:  # below validators that are annotated after this
            inner = inner["schema"]
        return handler(inner["python_schema"])


@dataclass(frozen=True)
class OrName:
    """Annotates a section for which a text may stand alone.

    Attributes:
        in_full: gives the keys of the section that a text stands for.
        texts: says in a sentence which texts these are.
    """

    in_full: Callable[[str], dict[str, str]]
    texts: str

    def __get_pydantic_core_schema__(self, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(section: Any) -> Any:
            if isinstance(section, str):
                return self.in_full(section)
            if not isinstance(section, Mapping | source):
                raise ValueError(f"got {section!r}; allowed: a section of keys, {self.texts}")
            return section

        return core_schema.no_info_before_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string"}]}


def or_name(kind: Any, path: Sequence[str | int]) -> Callable[[str], dict[str, str]] | None:
    """Return what gives the keys that a text alone stands for at `path` of a config; None where none may stand.

    The sections on the way are fields, entries of lists and values of mappings.
    """
    for part in _parts(kind):
        if not path:
            if isinstance(part, OrName):
                return part.in_full
            continue
        inside: Any = None
        if isinstance(part, type) and issubclass(part, BaseModel):
            field = part.model_fields.get(str(path[0]))
            inside = None if field is None else (field.annotation, *field.metadata)
        elif get_origin(part) in (list, dict):
            inside = get_args(part)[-1]
        found = None if inside is None else or_name(inside, path[1:])
        if found is not None:
            return found
    return None


def _parts(kind: Any) -> Iterator[Any]:
    """Yield the types of which an annotated type or a union is made, and what they are annotated with."""
    several = kind if isinstance(kind, tuple) else get_args(kind)
    if isinstance(kind, tuple) or get_origin(kind) in (Annotated, Union, UnionType):
        for each in several:
            yield from _parts(each)
    else:
        yield kind


@dataclass(frozen=True)
class OneOf:
    """Annotates a base class of configs: the section is one of those that `registry` holds, told apart by `key`.

    >>> StrategyConfig = Annotated[StrategyBase, OneOf(strategies, "name")]

    A section without `key` is the one called `default`, if that is given. Each config has the field `key`, a `Literal`
    of the names that it is registered under.
    """

    registry: Registry[Any]
    key: str
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: self._schema(name, handler) for name in self.registry}
        tagged = core_schema.tagged_union_schema(choices, self.key)
        if self.default is None:
            return tagged
        return core_schema.no_info_before_validator_function(self._with_default, tagged)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        if self.default is not None:
            written["discriminator"]["default"] = self.default  # for messages: which section one without the key is
        return written

    def _schema(self, name: str, handler: GetCoreSchemaHandler) -> CoreSchema:
        config = self.registry.get(name)
        where = f"the {self.registry.kind} {name!r} ({module_of(config)})"
        field = config.model_fields.get(self.key)
        if field is None or name not in get_args(field.annotation):
            raise InputError(f'{where} needs the field `{self.key}: Literal["{name}"]`')
        try:
            return handler.generate_schema(Annotated[config, ReadAnew()])
        except InputError:
            raise
        except Exception as error:  # pydantic and a third party's annotations may raise anything
            raise InputError(f"{where} cannot be a section of a recipe: {reason_of(error)}") from error

    def _with_default(self, section: Any) -> Any:
        return {self.key: self.default, **section} if isinstance(section, Mapping) else section


@dataclass(frozen=True)
class OneOfShort(OneOf):
    """Annotates like `OneOf`, for sections that may be written, and are written again, in short.

    A name alone stands for the section of that name with its defaults, and a key that is called like a name for
    `key`: with the key `kind`, `local` is `{kind: local}`, and `{ray: pi4}` is `{kind: ray, ray: pi4}`.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {self._tag(name): self._schema(name, handler) for name in self.registry}
        short = core_schema.plain_serializer_function_ser_schema(self._in_short)
        tagged = core_schema.tagged_union_schema(choices, self._tag_of)
        return core_schema.no_info_before_validator_function(self._in_full, tagged, serialization=short)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices: Any = schema["schema"]["choices"]
        named = {name: choices[self._tag(name)] for name in self.registry}
        written = handler(core_schema.tagged_union_schema(named, self.key))
        alternatives = [{"enum": self._alone(), "type": "string"}, *written["oneOf"]]
        return {"anyOf": alternatives, "discriminator": written["discriminator"] | {"short": True}}  # for messages

    def _tag(self, name: str) -> str:
        """Return what stands for a section in pydantic's locations: no key, which a name may be."""
        return f"{self.key}={name}"

    def _tag_of(self, section: Any) -> str:
        return self._tag(section[self.key] if isinstance(section, Mapping) else getattr(section, self.key))

    def _alone(self) -> list[str]:
        """Return the names that can stand alone: all options of their sections have defaults."""
        fields = {name: self.registry.get(name).model_fields.values() for name in self.registry}
        return [name for name, options in fields.items() if not any(option.is_required() for option in options)]

    def _in_full(self, section: Any) -> Any:
        names, alone = self.registry.names(), self._alone()
        if isinstance(section, Mapping):
            name = section.get(self.key, named_by(section, names))
            if name is None:
                raise PydanticKnownError("union_tag_not_found", {"discriminator": repr(self.key)})
            if name not in names:
                about = {"discriminator": repr(self.key), "tag": str(name), "expected_tags": ", ".join(names)}
                raise PydanticKnownError("union_tag_invalid", about)
            return {self.key: name, **section}
        if section in alone:
            return {self.key: section}
        if self.registry.base is not None and isinstance(section, self.registry.base):
            return section
        allowed = f"{', '.join(alone)} or a section of keys"
        raise ValueError(f"unknown value; allowed {allowed}{did_you_mean(section, alone)}")

    def _in_short(self, section: BaseModel) -> Any:
        written = section.model_dump()
        if set(written) == {self.key}:
            return written[self.key]
        rest = {key: value for key, value in written.items() if key != self.key}
        return rest if named_by(rest, self.registry.names()) == written[self.key] else written


@dataclass(frozen=True)
class NameOf:
    """Annotates a text: it is the name of something in one of `registries`."""

    registries: tuple[Registry[Any], ...]

    def __init__(self, *registries: Registry[Any]) -> None:
        object.__setattr__(self, "registries", registries)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(sorted({name for registry in self.registries for name in registry}))


@dataclass(frozen=True)
class OptionsOf:
    """Annotates a base class of configs: the section holds the options of what the key `beside` it names.

    >>> criterion: Annotated[str, NameOf(unit_criteria)] = "dimap"
    >>> options: Annotated[UnitCriterion, OptionsOf(unit_criteria, "criterion")] = DimapUnits()

    The key is declared before the section. Options that are left out are at the defaults of what is named.
    """

    registry: Registry[Any]
    beside: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        configs = {self._tag(name): Annotated[self.registry.get(name), ReadAnew()] for name in self.registry}
        choices = {tag: handler.generate_schema(config) for tag, config in configs.items()}
        chosen = core_schema.tagged_union_schema(choices, lambda section: section.tag)
        plain = core_schema.plain_serializer_function_ser_schema(lambda section: section.model_dump())
        return core_schema.with_info_wrap_validator_function(self._read, chosen, serialization=plain)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices: Any = schema["schema"]["choices"]
        named = {name: choices[self._tag(name)] for name in self.registry}
        written = handler(core_schema.tagged_union_schema(named, self.beside))
        choice = {"beside": self.beside, "mapping": written["discriminator"]["mapping"]}  # for messages
        return {"anyOf": written["oneOf"], "discriminator": choice}

    def _tag(self, name: str) -> str:
        return f"{self.beside}={name}"

    def _read(self, section: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        name = info.data.get(self.beside)
        if name is None:
            return section  # what is wrong is told of the key itself
        config = self.registry.get(name)
        if isinstance(section, BaseModel):
            if isinstance(section, config):
                return section
            section = section.model_dump(exclude_unset=True)
        if not isinstance(section, Mapping):
            raise PydanticKnownError("model_type", {"class_name": config.__name__})
        return handler(_Tagged(section, self._tag(name)))


class _Tagged(dict[str, Any]):
    """A section with the tag of what it holds options of."""

    def __init__(self, section: Mapping[str, Any], tag: str) -> None:
        super().__init__(section)
        self.tag = tag


def one_or_many(section: Any) -> Any:
    """Return the type of a section that may be a list of such sections, at least one."""
    many = Annotated[list[section], Tag("many"), Field(min_length=1)]
    return Annotated[Annotated[section, Tag("one")] | many, Discriminator(_one_or_many)]


def _one_or_many(value: Any) -> str:
    return "many" if isinstance(value, list | tuple) else "one"
