"""The base of every section of a recipe: strict, immutable, described field by field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A section of a recipe; a key it does not know is an error."""

    # what a section may be is looked up when one is first validated: a plug-in may still have to register
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, defer_build=True)
