"""The base of every section of a recipe: strict, immutable, described field by field."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema


class Config(BaseModel):
    """A section of a recipe; a key it does not know is an error."""

    # what a section may be is looked up when one is first validated: a plug-in may still have to register
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, defer_build=True, allow_inf_nan=False)


class Numbers:
    """Annotates a `Literal` of numbers: true, which equals 1 in Python, is none of them."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        expected = " or ".join(map(str, get_args(source)))

        def refuse(value: Any) -> Any:
            if isinstance(value, bool):
                raise PydanticKnownError("literal_error", {"expected": expected})
            return value

        return core_schema.no_info_before_validator_function(refuse, handler(source))
