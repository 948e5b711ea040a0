"""Sections and keys of a recipe whose alternatives are what a registry holds, so that plug-ins are legal values.

The alternatives are looked up when a section is first validated, not while modules are being imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from compress.core.errors import InputError, reason_of
from compress.core.registry import Registry, module_of


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
            return handler.generate_schema(config)
        except InputError:
            raise
        except Exception as error:  # pydantic and a third party's annotations may raise anything
            raise InputError(f"{where} cannot be a section of a recipe: {reason_of(error)}") from error

    def _with_default(self, section: Any) -> Any:
        return {self.key: self.default, **section} if isinstance(section, Mapping) else section


@dataclass(frozen=True)
class NameOf:
    """Annotates a text: it is the name of something in one of `registries`."""

    registries: tuple[Registry[Any], ...]

    def __init__(self, *registries: Registry[Any]) -> None:
        object.__setattr__(self, "registries", registries)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(sorted({name for registry in self.registries for name in registry}))
