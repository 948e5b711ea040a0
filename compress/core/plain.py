"""Values of third parties as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from compress.core.errors import CompressError


def plain_json(value: Any, where: str) -> Any:
    """Return `value` as JSON can hold it.

    Scalars of NumPy and torch become numbers, what is not finite null (as what was not measured), paths texts, tuples
    lists, keys texts.

    Raises:
        CompressError: naming the place below `where`: it is none of these.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):  # also NumPy's of 128 bits, whose `item` is the same again
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_json(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(each, f"{where}.{place}") for place, each in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", 1) == 0:
        return plain_json(item(), where)
    raise CompressError(f"{where} is {value!r:.80}; allowed: what JSON can hold")
