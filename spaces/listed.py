"""Spaces whose architectures are written, where nothing is published, as a list with one entry per decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.core.errors import InputError
from spaces.architecture import Architecture, Choice
from spaces.space import Space


class ListedSpace(Space):
    """A space with a code of its own: the choices in the order of its decisions, None for those that are not taken."""

    def from_code(self, code: Any) -> Mapping[str, Choice]:
        """Return the choices of a list with one entry per decision; None where a decision is not taken."""
        if not isinstance(code, (list, tuple)) or len(code) != len(self.decisions):
            raise InputError(
                f"space {self.name}: an architecture is a mapping, or a list of {len(self.decisions)} entries, one "
                f"per decision ({self.decisions[0].name}, ...); got {code!r}"
            )
        pairs = zip(self.decisions, code, strict=True)
        return {decision.name: choice for decision, choice in pairs if choice is not None}

    def to_code(self, arch: Architecture) -> list[Choice | None]:
        """Return one entry per decision; None for those that are not taken."""
        return [arch.get(decision.name) for decision in self.decisions]
