"""Arguments for classes of Optuna's, as a recipe gives them: checked before anything is made of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from compress.core.errors import did_you_mean

_PLAIN: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
    "dict": (dict,),
    "Mapping": (dict,),
    "list": (list, tuple),
    "Sequence": (list, tuple),
}
_WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "None": "null"}


def check_arguments(kind: type, given: Mapping[str, Any]) -> None:
    """Raise ValueError in one sentence where `kind` takes no argument of a name, or none of that type.

    Types are those of the signature's annotations; arguments that a recipe cannot give (functions) may only be null.
    """
    known = inspect.signature(kind).parameters
    for name, value in given.items():
        if name not in known:
            allowed = ", ".join(known)
            raise ValueError(
                f"{name}: {kind.__name__} takes no such argument; allowed {allowed}{did_you_mean(name, known)}"
            )
        kinds = _alternatives(known[name].annotation)
        if kinds and not any(_is_a(value, each) for each in kinds):
            allowed = " or ".join(_WORDS.get(each, "a list" if list in _PLAIN[each] else "a mapping") for each in kinds)
            raise ValueError(f"{name}: wrong type; got {value!r}; allowed {allowed}")


def _alternatives(annotation: Any) -> list[str]:
    """Return the names of the plain types in an annotation such as `int | None`."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    names = [part.strip().partition("[")[0] for part in text.split("|")]
    return [name for name in names if name in _PLAIN]


def _is_a(value: Any, name: str) -> bool:
    return isinstance(value, _PLAIN[name]) and (name == "bool" or not isinstance(value, bool))
