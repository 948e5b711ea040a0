from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.core.errors import CompressError
from compress.core.plain import plain_json


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (torch.tensor(2.5), 2.5), (True, True),
        (math.nan, None), (np.float64("inf"), None), (Path("a/b"), "a/b"), ((1, [None]), [1, [None]]),
        ({1: {"x": torch.tensor(math.nan)}}, {"1": {"x": None}}), (np.longdouble(0.5), 0.5),
    ],
)  # fmt: skip
def test_what_json_has_a_form_for_takes_it(value: Any, expected: Any) -> None:
    found = plain_json(value, "stage")
    assert found == expected and type(found) is type(expected) and json.loads(json.dumps(found)) == expected


@pytest.mark.parametrize(("value", "place"), [({"a": [{1}]}, "a.0"), ({"b": torch.ones(2)}, "b"), ({"c": len}, "c")])
def test_what_has_none_is_named_by_its_place(value: Any, place: str) -> None:
    with pytest.raises(CompressError, match=rf"^stage: details.{place} is "):
        plain_json(value, "stage: details")
