"""Torch's table of what each of its operators is in ONNX, made once in place of anew for every export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TABLES: dict[Any, Any] = {}


@contextmanager
def table_kept() -> Iterator[None]:
    """Let the exporter in the block take the table made before for its operator set.

    Making one reads and parses the sources of five hundred functions, some two seconds. A version of torch that keeps
    its table elsewhere makes it anew.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry

        make = Registry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return

    def kept(*args: Any, **kwargs: Any) -> Any:
        # without torchvision its operators are not in the table
        key = ("torchvision" in sys.modules, args, tuple(kwargs.items()))
        if key not in _TABLES:
            _TABLES[key] = make(*args, **kwargs)
        return _TABLES[key]

    own = vars(Registry)["from_torchlib"]
    Registry.from_torchlib = staticmethod(kept)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Registry.from_torchlib = own  # type: ignore[method-assign]
