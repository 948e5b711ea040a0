"""What tells one data set from another."""

from __future__ import annotations

import hashlib
from typing import Any

from evaluators.datasets.loaders import ArrayLoader, Data


def fingerprint(data: Data) -> dict[str, Any]:
    """Return, by what it is of, what is another for other data: JSON values.

    How many samples of each split and which classes there are; where images lie in memory, a digest of their bytes.
    """
    facts: dict[str, Any] = {"list of class names": data.class_names}
    for name, split in (("train", data.train), ("test", data.test)):
        facts[f"number of {name} samples"] = None if split is None else split.num_samples
        if isinstance(split, ArrayLoader):
            digest = hashlib.sha256()
            for tensor in (split.labels, split.images):
                digest.update(tensor.contiguous().numpy().reshape(-1).data)
            facts[f"{name} data"] = digest.hexdigest()
    return facts
